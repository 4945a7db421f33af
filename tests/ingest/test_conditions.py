"""Edits: the source is given as it is, the target drawn from it and the instruction, and either may be dropped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.mixes import Doc, mix, pair, prose
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import latent_rows
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch

CONDITIONS = {"edits": {"conditions": "earlier_images"}}
DROPS = {"instruction": 0.2, "image": 0.2, "both": 0.2}


def edit(number: int) -> Doc:
    """Image, instruction, image."""
    return Doc(key=f"e{number:03}", segments=[f"from {number}", 4, f"to {number}"])


def edits(root: Path, *, others: Mapping[str, Any] | None = None, **config: Any) -> Artifact:
    """A plan over edits, and whatever else."""
    docs = {"edits": [edit(i) for i in range(40)], **(others or {})}
    return mix(root, docs, **{"sources": CONDITIONS, **config})


def batches(reader: MixtureReader) -> list[PackedBatch]:
    """All of the plan."""
    places = [(step, lane) for step in range(reader.steps) for lane in range(reader.lanes)]
    return [reader.micro_batch(*place) for place in places]


def sight(batch: PackedBatch, slot: int) -> str:
    """What the image of a slot sees of an edit: BOS, source of six positions, four tokens, target."""
    assert batch.lo2 is not None
    assert batch.hi2 is not None
    row, boi = divmod(int(batch.image_positions[slot, 0]) - 1, batch.token_ids.shape[1])
    ranges = (batch.lo, batch.hi, batch.lo2, batch.hi2)
    # BOI and its patches alike.
    for values in ranges[0], *ranges[2:]:
        assert (values[row, boi : boi + 5] == values[row, boi]).all()
    lo, _, lo2, hi2 = (int(values[row, boi]) - boi for values in ranges)
    return {
        (-11, -11, -11): "all",
        (0, 0, 0): "nothing",
        (0, -11, -4): "images",
        (-4, -4, -4): "text",
    }[lo, lo2, hi2]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> MixtureReader:
    root = tmp_path_factory.mktemp("conditions") / "store"
    return MixtureReader(edits(root, condition_drop=DROPS, num_steps=100), seed=3)


def test_a_source_image_is_its_mean_to_the_bit_and_has_no_loss(reader: MixtureReader) -> None:
    means = {}
    latents = reader.plan._artifact.input("edits_latents")
    for entry in row_entries(latents).values():
        for row in latent_rows(load_table(latents.store, entry), 2):
            means[row.key, row.image_index] = row.mean.astype(np.float32)
    for step in range(3):
        batch, keys = reader.micro_batch(step, 0), reader.document_ids(step, 0)
        assert batch.clean is not None
        assert int(batch.present.sum()) == 2 * len(keys)
        for number, key in enumerate(keys):
            name = key.removeprefix("edits/")
            source, target = 2 * number, 2 * number + 1
            assert np.array_equal(batch.latents[source].numpy(), means[name, 0])
            assert not batch.noise[source].any()
            assert int(batch.timesteps[source]) == 0
            assert batch.noise[target].any()
            assert batch.clean[[source, target]].tolist() == [True, False]
            assert batch.image_weight[[source, target]].tolist() == [0, 1]
        assert not batch.clean[2 * len(keys) :].any()


def test_targets_are_of_all_timesteps_and_lose_sight_as_often_as_asked(
    reader: MixtureReader,
) -> None:
    counts = {"all": 0, "nothing": 0, "images": 0, "text": 0}
    timesteps = []
    for batch in batches(reader):
        for slot in batch.image_weight.nonzero().flatten().tolist():
            counts[sight(batch, slot)] += 1
            timesteps.append(int(batch.timesteps[slot]))
    total = sum(counts.values())
    assert total > 800
    for name, share in {"all": 0.4, "nothing": 0.2, "images": 0.2, "text": 0.2}.items():
        assert counts[name] / total == pytest.approx(share, abs=0.05)
    assert max(timesteps) > 900


def test_in_validation_nothing_is_dropped_and_shapes_are_those_of_training(tmp_path: Path) -> None:
    mixture = edits(tmp_path / "store", condition_drop=DROPS, held_out_fraction=0.4)
    reader = MixtureReader(mixture, seed=3)
    batch = reader.validation(0)
    slots = batch.image_weight.nonzero().flatten().tolist()
    assert slots
    assert {sight(batch, slot) for slot in slots} == {"all"}
    for other in (reader.zero_batch(), reader.micro_batch(0, 0)):
        for name in PackedBatch.__slots__:
            assert getattr(other, name).shape == getattr(batch, name).shape, name
            assert getattr(other, name).dtype == getattr(batch, name).dtype, name


def test_other_sources_are_drawn_as_if_there_were_no_edits(tmp_path: Path) -> None:
    """Pairs beside edits lose their captions by `caption_drop`; a plan is as without conditions."""
    others = {
        "pairs": [pair(f"p{i:03}") for i in range(40)],
        "prose": [prose(f"t{i:03}") for i in range(20)],
    }
    common: dict[str, Any] = {"others": others, "condition_drop": DROPS, "caption_drop": 0.5}
    with_them = MixtureReader(edits(tmp_path / "store", **common), seed=3)
    without = MixtureReader(edits(tmp_path / "store", **common, sources={}), seed=3)
    assert with_them.mixture.statistics == without.mixture.statistics
    assert with_them.mixture.image_slots == without.mixture.image_slots
    dropped = []
    for place in [(step, lane) for step in range(10) for lane in range(2)]:
        one, other = with_them.micro_batch(*place), without.micro_batch(*place)
        assert other.clean is other.lo2 is None
        assert one.clean is not None
        assert one.lo2 is not None
        for name in ("token_ids", "position_ids", "image_positions", "text_rows", "text_targets"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        keys = [k for k in with_them.document_ids(*place) if not k.startswith("prose/")]
        slots = iter(range(int(one.present.sum())))
        for key in keys:
            if key.startswith("edits/"):
                next(slots), next(slots)
                continue
            slot = next(slots)
            assert torch.equal(one.latents[slot], other.latents[slot])
            assert torch.equal(one.noise[slot], other.noise[slot])
            assert one.timesteps[slot] == other.timesteps[slot]
            row, first = divmod(int(one.image_positions[slot, 0]), one.token_ids.shape[1])
            for at in (first - 1, first):
                assert one.lo[row, at] == other.lo[row, at]
                assert one.hi[row, at] == other.hi[row, at]
                assert one.lo2[row, at] == one.lo[row, at]
            dropped.append(bool(one.lo[row, first - 1] == first - 1))
    assert 0.2 < np.mean(dropped) < 0.6


def test_the_mixture_says_what_is_a_condition(tmp_path: Path) -> None:
    found = read_mixture(edits(tmp_path / "store", others={"prose": [prose("t")]}))
    assert found.sources["edits"].conditions == "earlier_images"
    assert found.sources["prose"].conditions == "none"
    assert found.condition_drop == {"instruction": 0.05, "image": 0.05, "both": 0.05}
