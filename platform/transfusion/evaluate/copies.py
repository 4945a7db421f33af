"""Are drawings copies of what was trained on? Small sets are learned by heart.

What is drawn is encoded from its pixels and compared with every training image. Held-out images, decoded and
encoded as well, are the yardstick: how near do they come to one? Small sets hold look-alikes, so a small distance
makes no copy; one that hardly any held-out image has does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transfusion.evaluate.edits import EDITS
from transfusion.evaluate.held_out import CaptionedImage, Edit
from transfusion.evaluate.judges import SAMPLES, Evaluation
from transfusion.evaluate.nearest import Nearest, nearest_images
from transfusion.evaluate.pictures import save_pictures
from transfusion.evaluate.training_images import trained_steps, training_images
from transfusion.sample.sampler import DECODED_AT_ONCE, Sampler

NEAREST = "nearest.json"
"""A row a drawing: its nearest training image, their distance, and the ratio of that to the held-out median."""
HELD_OUT = "nearest_held_out.json"
"""The same of the yardstick: a row a held-out image."""

COPY_QUANTILE = 0.01
"""A drawing counts as a copy when it is nearer than this part of the held-out images are."""


def judge_copies(
    evaluation: Evaluation, *, images: Sequence[CaptionedImage], edits: Sequence[Edit]
) -> None:
    """Compares what was drawn, and edits that were made, with every image that was trained on.

    `nearest.copies` is the share of drawings that are nearer to one than `COPY_QUANTILE` of the held-out images,
    beside `nearest.distance_median`, `nearest.held_out_distance_median` and the ratio of the two,
    `nearest.distance_ratio`; `nearest_edits.*` are those of edits. `nearest.images` were looked at.

    Args:
        images: Held-out ones, the yardstick for drawings.
        edits: Held-out ones; what they were to become is the yardstick for what the model made of them.
    """
    sampler = evaluation.sampler
    if sampler.package.config.num_codes:
        evaluation.log.warning("num_nearest: images are tokens, so no nearest latents are found")
        return
    drawings = [row["file"] for row in evaluation.written.get(SAMPLES, ())]
    edited = [row["made"] for row in evaluation.written.get(EDITS, ())]
    kinds: dict[str, tuple[list[str], list[tuple[str, Tensor]]]] = {
        "nearest": (drawings, [(one.key, one.latent) for one in images]),
        "nearest_edits": (edited, [(one.key, one.target) for one in edits]),
    }
    kinds = {kind: (files, real) for kind, (files, real) in kinds.items() if files}
    asked: list[Tensor] = []
    for files, real in kinds.values():
        asked += _encoded(sampler, [_pixels(evaluation.folder / file) for file in files])
        asked += _encoded(sampler, _decoded(sampler, [latent for _, latent in real]))
    if not asked:
        return
    with evaluation.timed("nearest"):
        found, looked_at = nearest_images(
            torch.stack(asked),
            training_images(
                evaluation.mixture,
                steps=trained_steps(sampler.package.config.lineage, evaluation.mixture),
                max_images=evaluation.config.nearest_max_images,
            ),
            sampler.package.autoencoder,
        )
    if not found:
        evaluation.log.warning("num_nearest: the mixture trains on no images")
        return
    evaluation.metrics["nearest.images"] = float(looked_at)
    rows, yardstick, left = [], [], iter(found)
    for kind, (files, real) in kinds.items():
        own = [next(left) for _ in files]
        usual = [next(left) for _ in real]
        rows += _rows(evaluation, kind, files, own, usual)
        yardstick += [
            {"kind": kind, "of": key, **one.record()}
            for (key, _), one in zip(real, usual, strict=True)
        ]
    evaluation.write(NEAREST, rows)
    evaluation.write(HELD_OUT, yardstick)


def _rows(
    evaluation: Evaluation,
    kind: str,
    names: Sequence[str],
    found: Sequence[Nearest],
    held_out: Sequence[Nearest],
) -> list[dict[str, Any]]:
    """A row for each file, with a picture of what is nearest to it; their metrics go to the evaluation."""
    pictures = _decoded(evaluation.sampler, [one.latent for one in found])
    files = save_pictures(evaluation.folder / kind, pictures)
    rows = [
        {"of": name, "file": file, **one.record()}
        for name, file, one in zip(names, files, found, strict=True)
    ]
    distances = np.array([one.distance for one in found])
    metrics = {"distance_median": float(np.median(distances))}
    if held_out:
        usual = np.array([one.distance for one in held_out])
        median, copied = float(np.median(usual)), distances < np.quantile(usual, COPY_QUANTILE)
        metrics |= {
            "held_out_distance_median": median,
            "copies": float(copied.mean()),
        }
        for row, is_copy in zip(rows, copied.tolist(), strict=True):
            row["copy"] = is_copy
        if median:
            metrics["distance_ratio"] = metrics["distance_median"] / median
            for row in rows:
                row["ratio"] = row["distance"] / median
    evaluation.metrics |= {f"{kind}.{name}": value for name, value in metrics.items()}
    return rows


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def _decoded(sampler: Sampler, raw: Sequence[Tensor]) -> list[np.ndarray]:
    return sampler.pixels_of(sampler.parts_of(torch.stack(list(raw)))) if raw else []


def _encoded(sampler: Sampler, pictures: Sequence[np.ndarray]) -> list[Tensor]:
    """Normalised latents."""
    latents: list[Tensor] = []
    for start in range(0, len(pictures), DECODED_AT_ONCE):
        parts = sampler.encode_images(pictures[start : start + DECODED_AT_ONCE])
        latents += [part.latent for part in parts]
    return latents
