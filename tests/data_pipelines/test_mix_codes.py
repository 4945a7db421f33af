"""A mixture whose images are tokens: whole documents, no image slots, a larger vocabulary."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.shards import in_process
from tests.pipeline import (
    CODES,
    MIX_OF_CODES,
    coded,
    make,
    make_autoencoder,
    mixture_of_codes,
    rows_of,
    shapes,
)
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.errors import ArtifactError
from transfusion.evaluate.held_out import held_out_images, text_documents
from transfusion.ingest.reader import MixtureReader


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact]:
    root = tmp_path_factory.mktemp("codes") / "store"
    listing = shapes(root)
    return root, listing, coded(root, listing, make_autoencoder(root, codebook_size=CODES))


def test_batches_hold_whole_documents_as_text(world: tuple[Path, Artifact, Artifact]) -> None:
    root, _, tokens = world
    prose = make(
        root,
        "data_pipelines.tokenize_text",
        {},
        {"documents": make(root, "data_pipelines.sources.python_docs", {}),
         "tokenizer": tokens.input("tokenizer")},
        launch=in_process,
    )  # fmt: skip
    sources = {"pairs": {"tokens": "images"}, "prose": {"tokens": "prose"}}
    mixture = make(
        root,
        "data_pipelines.mix",
        {"sources": sources, **MIX_OF_CODES},
        {"images": tokens, "prose": prose},
    )
    plan = read_mixture(mixture)
    assert plan.num_codes == CODES
    assert (plan.latent_channels, plan.latent_height, plan.latent_width) == (1, 8, 8)
    assert plan.image_slots == 0
    reader = MixtureReader(mixture, seed=0)
    documents = {row.segments[0].tobytes() for row in rows_of(tokens)}
    special, seen = reader.special, 0
    for step, lane in np.ndindex(reader.steps, reader.lanes):
        batch = reader.micro_batch(step, lane)
        assert batch.image_weight.sum() == 0
        for ids in batch.token_ids.numpy():
            bounds = [*np.flatnonzero(ids == special.bos).tolist(), len(ids)]
            for start, end in itertools.pairwise(bounds):
                inside = ids[start + 1 : end]
                inside = inside[: (inside == special.eos).argmax()]
                if special.boi in inside:
                    assert inside.astype(np.int32).tobytes() in documents
                    seen += 1
        targets = batch.text_targets[batch.text_weight > 0]
        assert targets.max() < special.vocab_size
        assert (targets >= special.first_code).any() or special.boi not in batch.token_ids
    assert seen >= 8


def test_held_out_images_are_read_back_and_are_no_prose(
    world: tuple[Path, Artifact, Artifact],
) -> None:
    root, _, tokens = world
    mixture = mixture_of_codes(root, tokens)
    rows = {row.key: row for row in rows_of(tokens)}
    found = held_out_images(mixture, limit=100)
    assert found
    for image in found:
        codes = image.latent.flatten().tolist()
        (ids,) = (rows[image.key].segments[0].tolist(),)
        special = MixtureReader(mixture, seed=0).special
        block = [special.boi, *(special.first_code + code for code in codes), special.eoi]
        caption = list(image.caption_ids)
        assert ids in (caption + block, block + caption)
    assert all(special.boi not in row.segments[0] for row, _ in text_documents(mixture))


def test_what_one_model_cannot_read_is_refused(world: tuple[Path, Artifact, Artifact]) -> None:
    root, listing, tokens = world
    with pytest.raises(ArtifactError, match="patch_size is 2, and images are tokens"):
        mixture_of_codes(root, tokens, layout={"patch_size": 2})
    with pytest.raises(ArtifactError, match="clean_copies: images are tokens here"):
        mixture_of_codes(root, tokens, layout={"patch_size": 1, "clean_copies": True})
    latents = make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 32},
        {"images": listing, "autoencoder": tokens.input("autoencoder")},
        launch=in_process,
    )
    sources = {"pairs": {"tokens": "images", "latents": "latents"}}
    with pytest.raises(ArtifactError, match="among their tokens already"):
        make(
            root,
            "data_pipelines.mix",
            {**MIX_OF_CODES, "sources": sources},
            {"images": tokens, "latents": latents},
        )


def test_a_document_longer_than_a_sequence_is_told(world: tuple[Path, Artifact, Artifact]) -> None:
    root, _, tokens = world
    with pytest.raises(ArtifactError, match="too_long"):
        mixture_of_codes(root, tokens, sequence_length=64)
