"""What is told of copies: of edits by their own yardstick, and nothing where there is none."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.mixes import mix, pair
from tests.tiny import LATENT, QUICK, tiny_package
from transfusion.evaluate import copies
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.copies import judge_copies
from transfusion.evaluate.edits import EDITS
from transfusion.evaluate.held_out import CaptionedImage, Edit
from transfusion.evaluate.judges import SAMPLES, Evaluation
from transfusion.evaluate.pictures import save_pictures
from transfusion.evaluate.training_images import TrainingImages
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler

NUM = 6


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """Six drawings and six edits were made, of noise."""
    found = Evaluation(
        config=EvaluateConfig(seed=0, num_nearest=20, **QUICK),
        sampler=Sampler(load_package(tiny_package(tmp_path / "model"))),
        mixture=mix(tmp_path / "store", {"pairs": [pair("p")]}),
        pixels=[],
        world=None,
        folder=tmp_path,
        workers=ThreadPoolExecutor(1),
        advance=lambda count: None,
        log=logging.getLogger("tests"),
    )
    pictures = [*np.random.default_rng(0).integers(0, 256, (2 * NUM, 16, 16, 3), np.uint8)]
    samples = save_pictures(tmp_path / "samples", pictures[:NUM])
    edits = save_pictures(tmp_path / "edits", pictures[NUM:], "-made")
    found.write(SAMPLES, [{"file": name} for name in samples])
    found.write(EDITS, [{"made": name} for name in edits])
    return found


def trained_on(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch, *copied: str
) -> torch.Tensor:
    """Noise is what was trained on, and the pictures that are named."""
    sampler = evaluation.sampler
    planted = copies._encoded(
        sampler, [copies._pixels(evaluation.folder / name) for name in copied]
    )
    means = torch.randn(30, *LATENT, generator=torch.Generator().manual_seed(1))
    for index, latent in enumerate(planted):
        means[index] = sampler.package.autoencoder.statistics.denormalize(latent[None])[0]

    def images(*_: Any, **__: Any) -> Iterator[TrainingImages]:
        keys = [f"k{index}" for index in range(len(means))]
        yield TrainingImages(source="pairs", keys=keys, image_indices=[0] * 30, means=means)

    monkeypatch.setattr(copies, "training_images", images)
    return means


def held_out(count: int) -> tuple[list[CaptionedImage], list[Edit]]:
    """Of the same keys, as two sources may have."""
    drawn = torch.randn(count, *LATENT, generator=torch.Generator().manual_seed(2))
    images = [CaptionedImage("same", (3,), latent) for latent in drawn]
    edits = [Edit("same", (b"a",), latent[None], (3,), latent + 1) for latent in drawn]
    return images, edits


def test_drawings_and_edits_are_each_judged_by_held_out_ones_of_their_kind(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on(evaluation, monkeypatch, "samples/0002.png", "edits/0001-made.png")
    images, edits = held_out(12)
    judge_copies(evaluation, images=images, edits=edits)
    rows = json.loads((evaluation.folder / copies.NEAREST).read_text())
    flagged = {row["of"]: row["key"] for row in rows if row["copy"]}
    assert flagged == {"samples/0002.png": "k0", "edits/0001-made.png": "k1"}
    yardstick = json.loads((evaluation.folder / copies.HELD_OUT).read_text())
    for kind, part in (("nearest", rows[:NUM]), ("nearest_edits", rows[NUM:])):
        usual = [row["distance"] for row in yardstick if row["kind"] == kind]
        assert len(usual) == 12
        median = float(np.median(usual))
        assert evaluation.metrics[f"{kind}.copies"] == 1 / NUM
        assert evaluation.metrics[f"{kind}.held_out_distance_median"] == median
        assert [row["ratio"] for row in part] == [row["distance"] / median for row in part]
        assert all((evaluation.folder / row["file"]).is_file() for row in part)


def test_without_held_out_images_distances_are_told_and_no_copies(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on(evaluation, monkeypatch)
    judge_copies(evaluation, images=[], edits=[])
    rows = json.loads((evaluation.folder / copies.NEAREST).read_text())
    assert len(rows) == 2 * NUM
    assert not any("copy" in row or "ratio" in row for row in rows)
    assert set(evaluation.metrics) == {
        "nearest.images", "nearest.distance_median", "nearest_edits.distance_median"
    }  # fmt: skip


def test_where_nothing_was_drawn_or_trained_on_nothing_is_told(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, edits = held_out(3)
    monkeypatch.setattr(copies, "training_images", lambda *_, **__: iter(()))
    judge_copies(evaluation, images=images, edits=edits)
    trained_on(evaluation, monkeypatch)
    evaluation.written.clear()
    judge_copies(evaluation, images=images, edits=edits)
    assert not evaluation.metrics
    assert not (evaluation.folder / copies.NEAREST).exists()
