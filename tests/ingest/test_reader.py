"""Batches of a plan against a construction by hand from the tables, and against every way to come to them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pipeline import make_mixture
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LatentRow, latent_rows
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import TokenRow, token_rows
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.errors import ArtifactError
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("ingest") / "store", caption_drop=0.5)


def same(a: PackedBatch, b: PackedBatch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in PackedBatch.__slots__]
    return all(x is y if x is None or y is None else torch.equal(x, y) for x, y in pairs)


def tables(mixture: Artifact) -> tuple[dict[str, TokenRow], dict[str, LatentRow]]:
    tokens, latents = {}, {}
    for role, name in (("captions", "pairs"), ("prose", "prose")):
        artifact = mixture.input(role)
        for entry in row_entries(artifact).values():
            for row in token_rows(load_table(artifact.store, entry)):
                tokens[f"{name}/{row.key}"] = row
    artifact = mixture.input("latents")
    for entry in row_entries(artifact).values():
        for image in latent_rows(load_table(artifact.store, entry), 8):
            latents[f"pairs/{image.key}"] = image
    return tokens, latents


def test_a_batch_is_what_its_documents_say_token_by_token(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=1)
    tokens, latents = tables(mixture)
    special = reader.special
    checked_images = checked_pieces = 0
    for step in range(3):
        batch = reader.micro_batch(step, 1)
        keys = iter(reader.document_ids(step, 1))
        slot = 0
        for row in range(batch.token_ids.shape[0]):
            ids = batch.token_ids[row].tolist()
            positions = batch.position_ids[row].tolist()
            starts = [i for i, p in enumerate(positions) if p == 0 and ids[i] != special.pad]
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                key = next(keys)
                document, found = tokens[key], ids[start:end]
                if document.layout == "t":
                    whole = [special.bos, *np.concatenate(document.segments).tolist(), special.eos]
                    text = ",".join(map(str, found))
                    assert f",{text}," in f",{','.join(map(str, whole))},"
                    checked_pieces += 1
                    continue
                image = [special.boi, *[special.pad] * 16, special.eoi]
                caption = document.segments[0].tolist()
                caption_first = [special.bos, *caption, *image, special.eos]
                image_first = [special.bos, *image, *caption, special.eos]
                assert found in (caption_first, image_first)
                seen = found == image_first
                places = batch.image_positions[slot].tolist()
                boi = start + found.index(special.boi)
                assert places == [row * 256 + boi + 1 + i for i in range(16)]
                latent, std = latents[key].mean, latents[key].std
                raw = batch.latents[slot].numpy() * 2.0 + 0.5
                sampled = (raw - latent.astype(np.float32)) / std.astype(np.float32)
                # A posterior sample: unit normal, and not the noise of the diffusion.
                assert abs(sampled.mean()) < 0.2
                assert 0.8 < sampled.std() < 1.2
                assert (
                    abs(np.corrcoef(sampled.ravel(), batch.noise[slot].numpy().ravel())[0, 1]) < 0.2
                )
                assert 0 <= int(batch.timesteps[slot]) < (500 if seen else 1000)
                dropped = int(batch.lo[row, boi]) == boi
                assert int(batch.lo[row, boi]) == (boi if dropped else start)
                assert not (seen and dropped)
                checked_images += 1
                slot += 1
        assert int(batch.image_weight.sum()) == slot
        assert next(keys, None) is None
    assert checked_images > 20
    assert checked_pieces > 5


def test_draws_belong_to_document_and_epoch_not_to_place_or_reader(mixture: Artifact) -> None:
    one, other = MixtureReader(mixture, seed=1), MixtureReader(mixture, seed=1, cache_bytes=1)
    places = [(s, lane) for s in range(one.steps) for lane in range(one.lanes)]
    forwards = {place: one.micro_batch(*place) for place in places}
    for place in reversed(places):
        assert same(other.micro_batch(*place), forwards[place])
    again = MixtureReader(mixture, seed=2).micro_batch(0, 0)
    assert torch.equal(again.token_ids, forwards[0, 0].token_ids)
    assert not torch.equal(again.noise, forwards[0, 0].noise)


@pytest.mark.parametrize("world_size", [1, 2])
def test_any_number_of_workers_sees_the_same_global_batches(
    mixture: Artifact, world_size: int
) -> None:
    """Each worker opens its own reader and owns every world_size-th lane; resumed in the middle."""
    alone = MixtureReader(mixture, seed=1)
    for rank in range(world_size):
        worker = MixtureReader(mixture, seed=1)
        for step in range(2, 5):
            for lane in range(rank, alone.lanes, world_size):
                assert same(worker.micro_batch(step, lane), alone.micro_batch(step, lane))


def test_captions_are_dropped_as_often_as_asked_and_never_in_validation(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=1)

    def dropped(batch: PackedBatch) -> list[bool]:
        found = []
        for slot in range(int(batch.image_weight.sum())):
            place = int(batch.image_positions[slot, 0]) - 1
            row, boi = divmod(place, batch.token_ids.shape[1])
            if int(batch.position_ids[row, boi]) > 1:
                found.append(int(batch.lo[row, boi]) == boi)
        return found

    training = [
        d
        for s in range(reader.steps)
        for lane in range(2)
        for d in dropped(reader.micro_batch(s, lane))
    ]
    assert 0.35 < sum(training) / len(training) < 0.65
    validation = [d for i in range(reader.num_validation) for d in dropped(reader.validation(i))]
    assert validation
    assert not any(validation)


def test_validation_is_the_same_for_every_seed_of_a_run(mixture: Artifact) -> None:
    one, other = MixtureReader(mixture, seed=1), MixtureReader(mixture, seed=2)
    for index in range(one.num_validation):
        assert same(one.validation(index), other.validation(index))


def test_the_zero_batch_has_the_shapes_and_no_weight(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=1)
    zero, batch = reader.zero_batch(), reader.micro_batch(0, 0)
    for name in PackedBatch.__slots__:
        if getattr(batch, name) is None:
            assert getattr(zero, name) is None
            continue
        assert getattr(zero, name).shape == getattr(batch, name).shape
        assert getattr(zero, name).dtype == getattr(batch, name).dtype
    assert float(zero.image_weight.sum()) == float(zero.text_weight.sum()) == 0.0


def test_the_range_of_timesteps_is_the_objectives(mixture: Artifact) -> None:
    few = ObjectiveConfig(num_timesteps=10, noise_limit=3)
    batch = MixtureReader(mixture, seed=1, objective=few).micro_batch(0, 0)
    assert int(batch.timesteps.max()) < 10


def test_another_draw_of_timesteps_draws_all_else_alike(mixture: Artifact) -> None:
    """Runs that differ in their target, or in how its timesteps are drawn, can be compared image by image."""
    plain = MixtureReader(mixture, seed=1).micro_batch(0, 0)
    flow = ObjectiveConfig(
        schedule="straight", target="flow", timestep_draw="logit_normal", timestep_shift=3.0
    )
    other = MixtureReader(mixture, seed=1, objective=flow).micro_batch(0, 0)
    used = plain.image_weight.bool()
    assert not torch.equal(other.timesteps[used], plain.timesteps[used])
    assert torch.equal(other.timesteps[~used], plain.timesteps[~used])
    assert same(dataclasses.replace(other, timesteps=plain.timesteps), plain)


def test_an_altered_shard_is_found_and_a_step_beyond_the_plan_refused(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path / "store", num_images=30)
    with pytest.raises(IndexError, match="the plan has 6 steps of 2 lanes"):
        MixtureReader(mixture, seed=1).micro_batch(6, 0)
    latents = mixture.input("latents")
    for entry in row_entries(latents).values():
        place = tmp_path / "store" / entry.path
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
    with pytest.raises(ArtifactError, match="its bytes are not"):
        MixtureReader(mixture, seed=1).micro_batch(0, 0)
