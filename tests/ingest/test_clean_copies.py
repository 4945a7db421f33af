"""Plans with clean copies: what was packed is what is assembled, and an image and its copy are one draw."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.mixes import Doc, mix, pair, prose
from tests.pipeline import make, make_mixture
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.ingest.plan import Piece
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch

BLOCK = 4
"""Patches of an image, and so what a twin takes."""

DOCS = {
    "edits": [
        Doc(
            key=f"e{i:03}",
            # Of some the result is talked about: it alone is copied.
            segments=[f"from {i}", 3, f"to {i}", *([2] if i % 3 == 0 else [])],
        )
        for i in range(20)
    ],
    "pairs": [pair(f"p{i:03}", tokens=i % 6) for i in range(60)],
    "prose": [prose(f"t{i:03}", tokens=20 + i) for i in range(20)],
    # Longer than a sequence, most of them; two images side by side; texts of nothing.
    "web": [
        Doc(
            key=f"w{i:03}",
            segments=[*[i % 4, f"web {i}", f"{i} web"] * (1 + i % 7), *([3] if i % 2 else [0])],
        )
        for i in range(30)
    ],
}
OPTIONS: dict[str, Any] = {
    "sources": {"edits": {"conditions": "earlier_images"}},
    "layout": {"clean_copies": True},
    "caption_first": 0.5,
    "caption_drop": 0.4,
    "condition_drop": {"instruction": 0.2, "image": 0.2, "both": 0.2},
    "num_steps": 30,
    "lanes": 2,
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return mix(tmp_path_factory.mktemp("copies") / "store", DOCS, held_out_fraction=0.1, **OPTIONS)


class Image(NamedTuple):
    """An image of a document, read back from the tensors of a batch."""

    source: str
    boi: int
    slot: int
    twin: int | None
    """The slot of its twin."""
    has_more_behind: bool
    is_condition: bool


class Laid(NamedTuple):
    """A piece of a document and what a batch has of it."""

    piece: Piece
    row: int
    first: int
    images: list[Image]


def batches(reader: MixtureReader) -> Iterator[tuple[PackedBatch, list[list[Piece]]]]:
    """All of the plan, and what is held out."""
    for step in range(reader.steps):
        for lane in range(reader.lanes):
            yield reader.micro_batch(step, lane), reader.plan.sequences(step, lane)
    for index in range(reader.num_validation):
        yield reader.validation(index), reader.plan.validation(index)


def laid(reader: MixtureReader, batch: PackedBatch, plan: list[list[Piece]]) -> Iterator[Laid]:
    """Every piece, parsed from token ids: BOI, patches, EOI; patches that no BOI opens are twins."""
    special, names = reader.special, list(reader.mixture.sources)
    slot_at = {place: slot for slot, place in enumerate(batch.image_positions[:, 0].tolist())}
    length = batch.token_ids.shape[1]
    for row, pieces in enumerate(plan):
        ids = batch.token_ids[row].tolist()
        at = 0
        for piece in pieces:
            first, end = at, at + piece.length
            source = names[reader._locate(piece.shard)[0]]
            bois, twins, last_word = [], [], -1
            while at < end:
                if ids[at] == special.boi:
                    assert ids[at + 1 : at + BLOCK + 1] == [special.pad] * BLOCK
                    assert ids[at + BLOCK + 1] == special.eoi
                    bois.append(at)
                    at += BLOCK + 2
                elif ids[at] == special.pad:
                    twins.append(slot_at[row * length + at])
                    at += BLOCK
                else:
                    assert not twins
                    last_word = at if ids[at] < special.pad else last_word
                    at += 1
            assert at == end
            images = []
            for number, boi in enumerate(bois):
                more = number < len(bois) - 1 or last_word > boi
                condition = source == "edits" and number == 0
                has_twin = more and not condition
                slot = slot_at[row * length + boi + 1]
                twin = twins.pop(0) if has_twin else None
                images.append(Image(source, boi, slot, twin, more, condition))
            assert not twins
            yield Laid(piece, row, first, images)
        assert set(ids[at:]) <= {special.pad}
        assert not any(row * length + at <= place < (row + 1) * length for place in slot_at)


def test_what_was_packed_is_what_is_assembled(mixture: Artifact) -> None:
    """`laid` finds every position and every twin where the plan's lengths say; here what they came to."""
    reader = MixtureReader(mixture, seed=3)
    counts = dict.fromkeys(["with a twin", "without", "conditions", "cut", "image first"], 0)
    for batch, plan in batches(reader):
        assert batch.clean is not None
        assert batch.lo2 is not None
        found = list(laid(reader, batch, plan))
        images = [image for one in found for image in one.images]
        slots = [s for i in images for s in (i.slot, i.twin) if s is not None]
        assert sorted(slots) == batch.present.nonzero().flatten().tolist()
        for one in found:
            counts["cut"] += one.piece.start > 0 and bool(one.images)
            counts["image first"] += one.piece.image_first and one.images[0].twin is not None
        for image in images:
            noised = image.slot if image.twin is None else image.twin
            assert batch.image_weight[noised] == (not image.is_condition)
            assert bool(batch.clean[noised]) == image.is_condition
            if image.twin is not None:
                assert batch.clean[image.slot]
                assert batch.image_weight[image.slot] == batch.timesteps[image.slot] == 0
            counts["with a twin"] += image.twin is not None
            counts["without"] += image.twin is None and not image.is_condition
            counts["conditions"] += image.is_condition
        assert int(batch.image_weight.sum()) == sum(not i.is_condition for i in images)
    assert min(counts.values()) > 20, counts


def test_a_twin_sees_what_its_copy_sees_before_it_whatever_was_dropped(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=3)
    dropped = 0
    for batch, plan in batches(reader):
        assert batch.lo2 is not None
        assert batch.hi2 is not None
        for one in laid(reader, batch, plan):
            for image in one.images:
                if image.twin is None:
                    continue
                lo, hi, lo2, hi2 = (
                    x[one.row].tolist() for x in (batch.lo, batch.hi, batch.lo2, batch.hi2)
                )
                boi = image.boi
                assert {lo[boi], lo[boi + 1]} <= {one.first, boi} or image.source == "edits"
                assert hi[boi + 1] == boi + 1 + BLOCK
                dropped += lo[boi] == boi > one.first
                first = int(batch.image_positions[image.twin, 0]) - one.row * len(lo)
                for q in range(first, first + BLOCK):
                    assert (lo[q], hi[q]) == (first, first + BLOCK)
                    assert (lo2[q], hi2[q]) == (lo[boi], boi + 1)
                behind = set(range(len(lo))) - set(range(first, first + BLOCK))
                assert not any(
                    a[q] <= first < b[q] for q in behind for a, b in ((lo, hi), (lo2, hi2))
                )
    assert dropped > 20


def test_statistics_are_those_of_the_batches(mixture: Artifact) -> None:
    reader, plan = MixtureReader(mixture, seed=3), read_mixture(mixture)
    counted = {name: dict.fromkeys(("images", "twins", "positions"), 0) for name in plan.sources}
    for step in range(reader.steps):
        for lane in range(reader.lanes):
            batch, pieces = reader.micro_batch(step, lane), reader.plan.sequences(step, lane)
            for one in laid(reader, batch, pieces):
                source = list(plan.sources)[reader._locate(one.piece.shard)[0]]
                counted[source]["positions"] += one.piece.length
                counted[source]["images"] += len(one.images)
                counted[source]["twins"] += sum(i.twin is not None for i in one.images)
    for name, values in plan.statistics.items():
        assert values["images"] == counted[name]["images"]
        assert values["patch_tokens"] == BLOCK * counted[name]["images"]
        assert values["copy_tokens"] == BLOCK * counted[name]["twins"]
        assert values["positions"] == counted[name]["positions"]
    slots = plan.image_slots * plan.steps * plan.lanes
    used = sum(values["images"] + values["twins"] for values in counted.values())
    metrics = mixture.manifest.content.metrics
    assert metrics["image_slots_used"] == pytest.approx(used / slots, abs=1e-5)
    assert metrics["padding"] < 0.1


def test_an_epoch_of_pairs_is_one_whichever_order_was_drawn(tmp_path: Path) -> None:
    """Their lengths differ by the order, so epochs are counted by the length in the mean."""
    docs = {"pairs": [pair(f"p{i:03}") for i in range(60)]}
    made = mix(tmp_path / "store", docs, layout={"clean_copies": True}, caption_first=0.5)
    reader = MixtureReader(made, seed=0)
    pieces = [
        piece
        for step in range(reader.steps)
        for lane in range(reader.lanes)
        for part in reader.plan.sequences(step, lane)
        for piece in part
    ]
    # BOS, five tokens, an image of six, EOS; and four patches behind.
    assert {(p.image_first, p.length) for p in pieces} == {(False, 13), (True, 17)}
    epochs = read_mixture(made).statistics["pairs"]["epochs"]
    assert epochs == pytest.approx(len(pieces) / 60, rel=0.05)


def test_a_pair_must_fit_in_either_order_that_is_drawn(tmp_path: Path) -> None:
    docs = {"pairs": [pair("long", tokens=54), pair("short", tokens=50)]}
    for share, layout, rejected in (
        (0.5, {"clean_copies": True}, ["pairs/long"]),
        (1.0, {"clean_copies": True}, []),
        (0.5, {}, []),
    ):
        made = mix(tmp_path / "store", docs, layout=layout, caption_first=share)
        rejects = load_table(made.store, made.entry("rejects"))
        assert rejects["key"].to_pylist() == rejected
        if rejected:
            assert rejects["detail"][0].as_py().startswith("66 positions, at most 64")


def test_copy_and_twin_are_one_sample_and_draws_are_those_of_the_plan_without(
    tmp_path: Path,
) -> None:
    """Of latents that have a spread; by document and epoch, for the plans pack them otherwise."""
    plain = make_mixture(tmp_path / "store", caption_first=0.5, caption_drop=0.4)
    inputs = {role: plain.input(role) for role in plain.manifest.inputs}
    config = {**plain.manifest.config, "layout": {"clean_copies": True}}
    copied = make(tmp_path / "store", "data_pipelines.mix", config, inputs)
    drawn: list[dict[Any, Any]] = []
    latest = 0
    for made in (plain, copied):
        reader, found = MixtureReader(made, seed=1), {}
        drawn.append(found)
        for step in range(reader.steps):
            for lane in range(reader.lanes):
                batch, slot = reader.micro_batch(step, lane), 0
                plan = [p for part in reader.plan.sequences(step, lane) for p in part]
                for piece in plan:
                    source = reader._locate(piece.shard)[0]
                    if list(reader.mixture.sources)[source] != "pairs":
                        continue
                    noised = slot
                    if made is copied and piece.image_first:
                        noised, slot = slot + 1, slot + 1
                        assert torch.equal(batch.latents[noised - 1], batch.latents[noised])
                        latest = max(latest, int(batch.timesteps[noised]))
                    slot += 1
                    found[piece.shard, piece.row, piece.epoch] = (
                        piece.image_first,
                        batch.latents[noised].numpy(),
                        batch.noise[noised].numpy(),
                        int(batch.timesteps[noised]),
                    )
                assert slot == int(batch.present.sum())
    # What later text does not see is noised without a limit.
    assert latest > 600
    common = drawn[0].keys() & drawn[1].keys()
    assert sum(drawn[0][key][0] for key in common) > 5
    for key in common:
        (first, latent, noise, timestep), others = drawn[0][key], drawn[1][key]
        assert first == others[0]
        assert np.array_equal(latent, others[1])
        assert np.array_equal(noise, others[2])
        assert first or timestep == others[3]


def test_a_plan_without_is_the_plan_that_it_always_was(tmp_path: Path) -> None:
    docs = {name: DOCS[name] for name in ("pairs", "web")}
    plain = mix(tmp_path / "store", docs)
    off = mix(tmp_path / "store", docs, layout={"clean_copies": False})
    assert off.manifest.fingerprint == plain.manifest.fingerprint
    assert off.manifest.digest == plain.manifest.digest
    assert "clean_copies" not in off.metadata["layout"]
    assert "copy_tokens" not in read_mixture(off).statistics["pairs"]
    batch = MixtureReader(off, seed=0).micro_batch(0, 0)
    assert batch.clean is batch.lo2 is batch.hi2 is None


def test_the_zero_batch_has_the_shapes(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=3)
    zero, batch = reader.zero_batch(), reader.micro_batch(0, 0)
    for name in PackedBatch.__slots__:
        assert getattr(zero, name).shape == getattr(batch, name).shape, name
        assert getattr(zero, name).dtype == getattr(batch, name).dtype, name
