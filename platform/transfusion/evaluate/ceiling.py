"""What the autoencoder allows: real images and their reconstructions, scored as generated ones are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from transfusion.autoencoder.autoencoder import Autoencoder, psnr_db
from transfusion.evaluate.shapes.detector import detect
from transfusion.evaluate.shapes.prompts import Include, Prompt
from transfusion.evaluate.shapes.score import Verdict, score


def reconstruct(
    autoencoder: Autoencoder, images: Sequence[np.ndarray], *, batch_size: int
) -> list[np.ndarray]:
    """Images through the autoencoder and back."""
    back: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.stack(images[start : start + batch_size]))
        back.extend(autoencoder.reconstruct(batch).cpu().numpy())
    return back


def mean_psnr_db(images: Sequence[np.ndarray], back: Sequence[np.ndarray]) -> float:
    """Mean over images of the peak signal to noise ratio, in decibels."""
    ratios = psnr_db(torch.from_numpy(np.stack(back)), torch.from_numpy(np.stack(images)))
    return float(ratios.double().mean())


def scene_metrics(
    name: str, scenes: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray]
) -> dict[str, float]:
    """Accuracies of the detector on images of known scenes, as `ceiling.<name>.<accuracy>`.

    Those of single objects stand by themselves: they are what `single_object` of generated images compares with.
    """
    single: list[Verdict] = []
    several: list[Verdict] = []
    for scene, image in zip(scenes, images, strict=True):
        objects = Counter((one["color"], one["shape"]) for one in scene["objects"])
        include = tuple(Include(c, s, count) for (c, s), count in objects.items())
        verdict = score(Prompt("single_object", "", include), detect(image))
        (single if objects.total() == 1 else several).append(verdict)
    metrics = {}
    if single:
        prefix = f"ceiling.{name}"
        metrics[f"{prefix}.color_accuracy"] = fmean([v.color_correct for v in single])
        metrics[f"{prefix}.shape_accuracy"] = fmean([v.shape_correct for v in single])
        metrics[f"{prefix}.color_shape_accuracy"] = fmean(
            [v.color_correct and v.shape_correct for v in single]
        )
        metrics[f"{prefix}.accuracy"] = fmean([v.correct for v in single])
    if several:
        metrics[f"ceiling.{name}.several_objects.accuracy"] = fmean([v.correct for v in several])
    return metrics
