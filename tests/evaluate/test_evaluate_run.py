"""The evaluate stage over a small pipeline: what it reads, what it scores, and that it is the same each time."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transfusion.evaluate.judges as judges
import transfusion.evaluate.run as body
from tests.pipeline import commit, make, make_mixture
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.publish import publish_folder
from transfusion.evaluate.captions import Described
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.copies import HELD_OUT, NEAREST
from transfusion.evaluate.held_out import held_out_images, text_documents
from transfusion.evaluate.shapes.prompts import TASKS
from transfusion.evaluate.shapes.words import read_caption
from transfusion.evaluate.training_images import training_images
from transfusion.ingest.reader import MixtureReader
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.load import load_package
from transfusion.stage import Made
from transfusion.train import STAGE as TRAIN
from transfusion.train.config import TrainConfig

QUICK = {
    "seed": 0,
    "solver": "dpm++",
    "num_inference_steps": 10,
    "num_single_object": 6,
    "num_per_task": 2,
    "num_captions": 4,
    "max_caption_tokens": 8,
    "num_text_documents": 2,
    "max_document_tokens": 300,
    "num_pixels": 12,
    "num_shown": 2,
    "batch_size": 5,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return untrained(tmp_path_factory.mktemp("pipeline") / "store", "data_pipelines.sources.shapes")


def untrained(root: Path, drawn: str) -> dict[str, Artifact]:
    """A mixture, the pixels of its images, and a model that was never trained."""
    from data_pipelines.shards import in_process

    mixture = make_mixture(root, num_images=60, drawn=drawn)
    captions, latents = mixture.input("captions"), mixture.input("latents")
    pixels = make(
        root,
        "data_pipelines.pixels",
        {"image_size_px": 32},
        {"images": latents.input("images")},
        launch=in_process,
    )
    model = ModelConfig(
        dim=32,
        depth=2,
        num_heads=2,
        adapter="unet",
        unet=UNetConfig(channels=(16, 16), time_dim=16),
    )
    config = TrainConfig(steps=1, seed=0, lr=1e-3, model=model)
    run = commit(
        mixture.store,
        "transfusion.train",
        TRAIN,
        "b" * 64,
        config.resolved(),
        {"mixture": mixture},
        Made(files=_weights(root, model, mixture, vocabulary=captions.metadata["num_pieces"] + 5)),
    )
    inputs = {
        "run": run,
        "tokenizer": captions.input("tokenizer"),
        "autoencoder": latents.input("autoencoder"),
        "mixture": mixture,
    }
    package = make(root, "transfusion.package", {}, inputs)
    return {"model": package, "mixture": mixture, "pixels": pixels, "run": run, **inputs}


def _weights(root: Path, config: ModelConfig, mixture: Artifact, *, vocabulary: int) -> Any:
    from safetensors.torch import save_file

    folder = root.parent / "weights"
    folder.mkdir()
    for name, seed in (("model", 0), ("ema", 1)):
        model = TransfusionModel(config, vocab_size=vocabulary, latent_channels=8)
        model.init_weights(seed)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return publish_folder(mixture.store, "transfusion.train/files", folder)


def evaluate(made: dict[str, Artifact], name: str = "store", **changed: Any) -> Artifact:
    root = Path(made["model"].store.uri)
    inputs = {role: made[role] for role in ("model", "mixture", "pixels")}
    # A stage begins with an empty folder; here it is the one of the evaluation before.
    shutil.rmtree(root.parent / f"{root.name}-scratch" / "evaluation", ignore_errors=True)
    return make(root, "transfusion.evaluate", QUICK | changed, inputs)


def rows(evaluation: Artifact, name: str) -> list[dict[str, Any]]:
    return json.loads(evaluation.read(name))


def test_the_package_is_what_its_inputs_say(made: dict[str, Artifact]) -> None:
    package = load_package(made["model"].folder())
    assert package.config.latent_shape == (8, 8, 8)
    assert package.config.image_size_px == 32
    assert package.config.num_pieces == made["tokenizer"].metadata["num_pieces"]
    lineage = {entry.uses: entry for entry in package.config.lineage}
    assert {"data_pipelines.sources.shapes", "data_pipelines.encode_images"} <= set(lineage)
    assert lineage["transfusion.train"].digest == made["run"].manifest.digest
    raw, ema = (load_package(made["model"].folder(), weights=w).model for w in ("raw", "ema"))
    assert not torch.equal(raw.head.weight, ema.head.weight)


def test_a_package_of_parts_that_do_not_belong_together_is_refused(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    from transfusion.errors import ArtifactError

    other = make(
        Path(made["model"].store.uri),
        "data_pipelines.tokenizer",
        {"vocab_size": 420, "max_training_mib": 0.1},
        {"images": made["mixture"].input("captions").input("documents")},
    )
    inputs = {role: made[role] for role in ("run", "autoencoder", "mixture")}
    with pytest.raises(ArtifactError, match="the input 'tokenizer'"):
        make(
            Path(made["model"].store.uri), "transfusion.package", {}, inputs | {"tokenizer": other}
        )


def test_what_is_judged_was_never_trained_on(made: dict[str, Artifact]) -> None:
    mixture = made["mixture"]
    reader = MixtureReader(mixture, seed=0)
    trained = {
        key
        for step in range(reader.steps)
        for lane in range(reader.lanes)
        for key in reader.document_ids(step, lane)
    }
    judged = {f"pairs/{image.key}" for image in held_out_images(mixture, limit=1000)}
    judged |= {f"prose/{d.key}" for d, held_out in text_documents(mixture) if held_out}
    others = {f"prose/{d.key}" for d, held_out in text_documents(mixture) if not held_out}
    assert len(judged) > 5
    assert not judged & trained
    assert others & trained


def test_the_same_evaluation_twice_is_the_same_to_the_bit(made: dict[str, Artifact]) -> None:
    first, second = evaluate(made), evaluate(made)
    assert first.manifest.digest == second.manifest.digest
    metrics = first.manifest.content.metrics
    assert {
        "single_object.color_accuracy",
        "single_object.color_shape_accuracy",
        "caption.color_accuracy",
        "autoencoder.psnr_db",
        "ceiling.real.color_shape_accuracy",
        "ceiling.reconstruction.color_shape_accuracy",
        "text.bits_per_byte",
        "text.unigram_bits_per_byte",
        "validation.lm_loss",
        "validation.diffusion_loss",
    } <= set(metrics)
    assert metrics["ceiling.real.color_shape_accuracy"] == 1.0
    # Nothing was learned: about the entropy of one noise, and of one of so many tokens.
    assert metrics["validation.diffusion_loss"] == pytest.approx(1.0, abs=0.2)
    assert len(rows(first, "samples.json")) == 6 + 5 * 2
    assert len(rows(first, "captions.json")) == 4
    for row in rows(first, "samples.json"):
        assert first.read(row["file"]).startswith(b"\x89PNG")


def test_scores_are_those_of_what_was_drawn(made: dict[str, Artifact], monkeypatch) -> None:
    wrong = "single_object"

    def draw(sampler, prompts, *, advance, **_: Any) -> list[np.ndarray]:
        tags = [
            task for task in EvaluateConfig(seed=0).tasks for _ in range(6 if task == wrong else 2)
        ]
        return [
            _picture(text, spoil=index % 2 == 0 and tag == wrong)
            for index, (text, tag) in enumerate(zip(prompts, tags, strict=True))
        ]

    def describe(sampler, images, **_: Any) -> list[Described]:
        decode = sampler.package.tokenizer.decode
        references = [decode(image.caption_ids).strip() for image in images]
        return [
            Described(image.key, reference, reference if index else "a black hole")
            for index, (image, reference) in enumerate(zip(images, references, strict=True))
        ]

    monkeypatch.setattr(judges, "draw_prompts", draw)
    monkeypatch.setattr(judges, "describe", describe)
    evaluation = evaluate(made, seed=7)
    metrics = evaluation.manifest.content.metrics
    assert metrics["single_object.color_accuracy"] == 0.5
    assert metrics["single_object.shape_accuracy"] == 1.0
    for task in set(TASKS) - {wrong}:
        assert metrics[f"{task}.accuracy"] == 1.0
    assert metrics["caption.color_accuracy"] == 0.75
    samples = rows(evaluation, "samples.json")
    assert [row["correct"] for row in samples[:4]] == [False, True, False, True]
    assert "shows" in samples[0]["reason"]


def test_a_drawing_that_copies_a_training_image_is_found_and_no_other(
    made: dict[str, Artifact], monkeypatch
) -> None:
    mixture = made["mixture"]
    groups = training_images(mixture, steps=6, max_images=1000)
    trained = sorted(key for group in groups for key in group.keys)
    pixels = {row.key: row.pixels for row in read_pixels(made["pixels"])}
    planted = trained[len(trained) // 2]
    rng = np.random.default_rng(0)

    def draw(sampler, prompts, **_: Any) -> list[np.ndarray]:
        noise = rng.integers(0, 256, (len(prompts) - 1, 32, 32, 3), np.uint8)
        return [pixels[planted], *noise]

    monkeypatch.setattr(judges, "draw_prompts", draw)
    evaluation = evaluate(made, seed=11, num_nearest=1000)
    found, yardstick = (rows(evaluation, name) for name in (NEAREST, HELD_OUT))
    samples = rows(evaluation, "samples.json")
    assert [row["of"] for row in found] == [row["file"] for row in samples]
    first = found[0]
    assert (first["source"], first["key"], first["image_index"]) == ("pairs", planted, 0)
    # The latent of the mixture is its encoding, rounded to fp16.
    assert first["distance"] < 2e-3
    assert [row["copy"] for row in found] == [True] + [False] * (len(found) - 1)
    held_out = held_out_images(mixture, limit=1000)
    assert [row["of"] for row in yardstick] == [image.key for image in held_out]
    assert len(yardstick) >= 3
    assert {row["key"] for row in found + yardstick} <= set(trained)
    assert not {image.key for image in held_out} & set(trained)
    metrics = evaluation.manifest.content.metrics
    assert metrics["nearest.images"] == len(trained)
    assert metrics["nearest.copies"] == 1 / len(found)
    distances, usual = ([row["distance"] for row in part] for part in (found, yardstick))
    assert metrics["nearest.distance_median"] == np.median(distances)
    assert metrics["nearest.held_out_distance_median"] == np.median(usual)
    assert found[1]["ratio"] == found[1]["distance"] / np.median(usual)
    assert metrics["nearest.distance_ratio"] == np.median(distances) / np.median(usual)
    for row in found:
        assert evaluation.read(row["file"]).startswith(b"\x89PNG")


def test_nearest_images_change_nothing_else_and_are_not_looked_for_unasked(
    made: dict[str, Artifact],
) -> None:
    without, asked = evaluate(made), evaluate(made, num_nearest=5)
    names = {file.name for file in without.manifest.content.files}
    assert not any("nearest" in name for name in names)
    there = {file.name: file.sha256 for file in asked.manifest.content.files}
    for file in without.manifest.content.files:
        if file.name != "metrics.json":
            assert there[file.name] == file.sha256
    metrics = asked.manifest.content.metrics
    assert {name for name in metrics if name.startswith("nearest")} == {
        "nearest.images",
        "nearest.copies",
        "nearest.distance_median",
        "nearest.held_out_distance_median",
        "nearest.distance_ratio",
    }
    rest = {name: value for name, value in metrics.items() if not name.startswith("nearest")}
    assert rest == without.manifest.content.metrics
    assert EvaluateConfig(seed=0, num_nearest=0).identity() == EvaluateConfig(seed=0).identity()


def test_images_that_no_detector_knows_are_drawn_and_not_judged(
    made: dict[str, Artifact], monkeypatch
) -> None:
    monkeypatch.setattr(body, "WORLDS", {})
    evaluation = evaluate(made, seed=9, num_caption_prompts=3)
    samples = rows(evaluation, "samples.json")
    references = {row["reference"] for row in rows(evaluation, "captions.json")}
    assert {row["prompt"] for row in samples} <= references
    assert len(samples) == 3
    assert "correct" not in samples[0]
    assert not any(name.startswith("single_object") for name in evaluation.manifest.content.metrics)


def test_textures_are_judged_in_degrees_beside_both_ceilings(tmp_path: Path) -> None:
    made = untrained(tmp_path / "store", "data_pipelines.sources.textures")
    evaluation = evaluate(made)
    metrics = evaluation.manifest.content.metrics
    measures = (
        "hue_error_deg",
        "hue_within_15",
        "direction_error_deg",
        "direction_within_15",
        "read",
    )
    for of in ("", "caption.", "real.", "reconstruction."):
        assert {f"textures.{of}{measure}" for measure in measures} <= set(metrics)
    assert metrics["textures.real.hue_error_deg"] < 1
    assert metrics["textures.real.direction_error_deg"] < 1
    # Nothing was learned: what is drawn is not near what was asked for.
    assert metrics["textures.hue_error_deg"] > 30
    samples = rows(evaluation, "samples.json")
    assert len(samples) == QUICK["num_single_object"]
    for row in samples:
        assert row["task"] == "single_object"
        assert row["prompt"].startswith("a ")
        assert row["hue_error_deg"] <= 180
    assert not any(name.startswith(("single_object", "ceiling", "caption.")) for name in metrics)


def _picture(prompt: str, *, spoil: bool) -> np.ndarray:
    """The prompt's objects as plain discs, squares and triangles, by hand; in another colour when spoiled."""
    from PIL import Image, ImageDraw

    from transfusion.evaluate.shapes.detector import PALETTE

    reading = read_caption(prompt)
    looks = reading.looks()
    spots = {
        "left of": [(9, 16), (23, 16)],
        "right of": [(23, 16), (9, 16)],
        "above": [(16, 9), (16, 23)],
        "below": [(16, 23), (16, 9)],
        None: [(8, 8), (24, 8), (16, 24)] if len(looks) > 1 else [(16, 16)],
    }[reading.relation]
    scale = 8
    image = Image.new("RGB", (32 * scale, 32 * scale), "white")
    draw = ImageDraw.Draw(image)
    for (color, shape), (x, y) in zip(looks, spots, strict=False):
        shown = color if not spoil else ("blue" if color != "blue" else "red")
        fill, r = tuple(PALETTE[shown]), (8 if len(looks) == 1 else 5)
        box = [scale * (x - r), scale * (y - r), scale * (x + r), scale * (y + r)]
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        elif shape == "square":
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(scale * x, box[1]), (box[0], box[3]), (box[2], box[3])], fill=fill)
    return np.asarray(image.resize((32, 32), Image.Resampling.BOX))
