"""Previews of a run on a real mixture: pictures that open, words beside the true ones, latents and codes alike."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.pipeline import (
    CODES,
    coded,
    make_autoencoder,
    make_mixture,
    mixture_of_codes,
    shapes,
)
from tests.train.outcomes import rows
from tests.train.worlds import train_as
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.errors import ArtifactError
from transfusion.evaluate.held_out import held_out_images
from transfusion.ingest.reader import MixtureReader
from transfusion.model.config import ModelConfig
from transfusion.resources import TrainResources
from transfusion.train.config import TrainConfig
from transfusion.train.preview import held_out_pairs, token_accuracy
from transfusion.train.run import build, check_plan

pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("latents") / "store")


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("codes") / "store"
    tokens = coded(root, shapes(root), make_autoencoder(root, codebook_size=CODES))
    return mixture_of_codes(root, tokens, validation_micro_batches=1)


def settings(patch_size: int = 2, **changed: Any) -> TrainConfig:
    model = ModelConfig(dim=32, depth=1, num_heads=2, patch_size=patch_size, adapter="linear")
    values = {"steps": 3, "seed": 0, "model": model, "preview_every_steps": 2}
    return TrainConfig(**(values | changed))


def run(folder: Path, mixture: Artifact, config: TrainConfig) -> dict[str, Any]:
    trainee = build(config.resolved(), {"mixture": mixture}, torch.device("cpu"), TrainResources())
    return train_as(trainee, folder)


def shown(folder: Path, outcome: dict[str, Any]) -> dict[str, bytes]:
    files = [file for file in outcome["files"] if file["name"].startswith("previews/")]
    return {Path(file["name"]).name: (folder / file["path"]).read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["latents", "codes"])
def test_a_run_draws_held_out_captions_and_describes_their_images(tmp_path, request, kind):
    mixture = request.getfixturevalue(kind)
    config = settings(patch_size=2 if kind == "latents" else 1, preview_captions=2)
    outcome = run(tmp_path, mixture, config)
    previews = shown(tmp_path, outcome)
    names = [f"step-{step:06d}.{ending}" for step in (2, 3) for ending in ("json", "png")]
    assert sorted(previews) == names
    about = json.loads(previews["step-000003.json"])
    with Image.open(io.BytesIO(previews["step-000003.png"])) as image:
        # Pictures of 32 px, three times as large in a frame of 2 px.
        assert image.size == (100 * len(about["prompts"]), 100)
    tokenizer = mixture_tokenizer(mixture)
    known = {tokenizer.decode(one.caption_ids) for one in held_out_images(mixture, limit=1000)}
    assert about["prompts"]
    assert set(about["prompts"]) <= known
    assert [one["reference"] for one in about["captions"]] == about["prompts"][:2]
    scored = [
        row for row in rows(tmp_path, outcome, "validation") if "caption_token_accuracy" in row
    ]
    assert [row["step"] for row in scored] == [2, 3]
    assert all(0 <= row["caption_token_accuracy"] <= 1 for row in scored)
    assert (
        outcome["metrics"]["validation.caption_token_accuracy"]
        == scored[-1]["caption_token_accuracy"]
    )


def mixture_tokenizer(mixture: Artifact):
    from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

    source = next(s for s in read_mixture(mixture).sources.values())
    return Tokenizer(mixture.input(source.tokens).input("tokenizer").read(MODEL))


def test_pictures_and_words_alone_change_no_weight_and_no_other_value(tmp_path, latents):
    outcomes = {
        name: run(tmp_path / name, latents, settings(**options))
        for name, options in (
            ("none", {"preview_every_steps": 0}),
            ("drawn", {}),
            ("described", {"preview_captions": 1}),
        )
    }
    digests = {
        name: {
            f["name"]: f["sha256"] for f in outcome["files"] if f["name"].endswith(".safetensors")
        }
        for name, outcome in outcomes.items()
    }
    assert digests["none"] == digests["drawn"] == digests["described"] != {}
    of_metrics = {
        name: next(f["digest"] for f in outcome["files"] if f["name"] == "metrics.jsonl")
        for name, outcome in outcomes.items()
    }
    assert of_metrics["none"] == of_metrics["drawn"] != of_metrics["described"]


def test_the_codes_of_a_pair_are_those_that_the_artifact_holds_for_its_caption(codes):
    plan = read_mixture(codes)
    reader = MixtureReader(codes, seed=0)
    pairs = held_out_pairs(reader.validation(0), reader.special)
    held = {
        (one.caption_ids, tuple(one.latent.flatten().tolist()))
        for one in held_out_images(codes, limit=1000)
    }
    assert pairs
    assert {(pair.caption, tuple(pair.image.flatten().tolist())) for pair in pairs} <= held
    assert pairs[0].image.numel() == plan.latent_height * plan.latent_width


@pytest.mark.parametrize(
    ("written", "reference", "expected"),
    [((5, 6, 7), (5, 6, 7), 1.0), ((5, 9, 7), (5, 6, 7), 2 / 3), ((5,), (5, 6), 0.5),
     ((5, 6, 7, 8), (5, 6), 0.5), ((), (5,), 0.0)],
)  # fmt: skip
def test_tokens_are_right_place_by_place_and_length_counts(written, reference, expected):
    assert token_accuracy(written, reference) == expected


def test_previews_of_no_images_are_refused(tmp_path):
    text_only = make_mixture(
        tmp_path / "store",
        num_images=30,
        sources={"prose": {"tokens": "prose", "held_out_fraction": 0.1}},
    )
    with pytest.raises(ArtifactError, match="no source of the mixture has images"):
        check_plan(settings(), read_mixture(text_only))
    check_plan(settings(preview_every_steps=0), read_mixture(text_only))


def test_described_images_need_previews_and_are_off_unless_asked_for():
    with pytest.raises(ValueError, match="set preview_every_steps"):
        settings(preview_every_steps=0, preview_captions=1)
    assert "preview_captions" not in settings().identity()


def test_a_profile_says_how_much_of_the_shards_a_worker_keeps(latents):
    trainee = build(
        settings().resolved(),
        {"mixture": latents},
        torch.device("cpu"),
        TrainResources(data_cache_gib=0.5),
    )
    assert trainee._source.cache.max_bytes == 2**29
