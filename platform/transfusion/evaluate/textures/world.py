"""The world of striped objects of continuous hue: how far a picture is from what was asked for, in degrees.

Metrics of drawings are `textures.<measure>`, those of descriptions `textures.caption.<measure>`; real images
(`textures.real.<measure>`) and reconstructions (`textures.reconstruction.<measure>`) are measured by the same
reader. Shapes are named in prompts, and not judged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfusion.evaluate.captions import Described
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.textures.reader import read_look
from transfusion.evaluate.textures.score import NEAR_DEG, Errors, error_metrics, errors_of
from transfusion.evaluate.textures.words import Prompt, is_texture, make_prompts, read_caption
from transfusion.evaluate.world import Judgement, World

TASK = "single_object"
"""The one task that this world has."""


def _prompts(config: EvaluateConfig) -> list[Prompt]:
    return make_prompts(config.num_single_object, config.seed) if TASK in config.tasks else []


def _judge_drawings(prompts: Sequence[Prompt], pictures: Sequence[np.ndarray]) -> Judgement:
    records: list[dict[str, Any]] = []
    errors: list[Errors] = []
    for prompt, picture in zip(prompts, pictures, strict=True):
        look = read_look(picture)
        error = errors_of(
            look.hue_deg,
            look.direction_deg,
            true_hue_deg=float(prompt.hue_deg),
            true_direction_deg=float(prompt.direction_deg),
        )
        errors.append(error)
        shown = f"hue {_told(look.hue_deg)}, stripes at {_told(look.direction_deg)} degrees"
        correct = error.read and max(error.hue_deg, error.direction_deg) <= NEAR_DEG
        records.append(
            {
                "task": TASK,
                "correct": correct,
                "hue_error_deg": error.hue_deg,
                "direction_error_deg": error.direction_deg,
                "reason": "" if correct else shown,
            }
        )
    return Judgement(records=records, metrics=error_metrics("textures", errors))


def _judge_captions(described: Sequence[Described]) -> Judgement:
    records: list[dict[str, Any]] = []
    errors: list[Errors] = []
    for one in described:
        said, true = read_caption(one.caption), read_caption(one.reference)
        if true.hue_deg is None or true.direction_deg is None:
            records.append({})  # of another source of the mixture
            continue
        error = errors_of(
            said.hue_deg,
            said.direction_deg,
            true_hue_deg=true.hue_deg,
            true_direction_deg=true.direction_deg,
        )
        errors.append(error)
        records.append({"hue_error_deg": error.hue_deg, "direction_error_deg": error.direction_deg})
    return Judgement(records=records, metrics=error_metrics("textures.caption", errors))


def _ceiling(
    name: str, scenes: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray]
) -> dict[str, float]:
    looks = [read_look(image) for image in images]
    errors = [
        errors_of(
            look.hue_deg,
            look.direction_deg,
            true_hue_deg=scene["hue_deg"],
            true_direction_deg=scene["direction_deg"],
        )
        for look, scene in zip(looks, scenes, strict=True)
    ]
    return error_metrics(f"textures.{name}", errors)


def _told(angle_deg: float | None) -> str:
    return "none" if angle_deg is None else f"{angle_deg:.0f}"


WORLD = World(
    make_prompts=_prompts,
    judge_drawings=_judge_drawings,
    judge_captions=_judge_captions,
    knows=is_texture,
    ceiling=_ceiling,
)
