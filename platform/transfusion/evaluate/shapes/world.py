"""The world of coloured shapes: GenEval's tasks, judged by the detector."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transfusion.evaluate.captions import Described
from transfusion.evaluate.ceiling import scene_metrics
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.shapes.detector import detect
from transfusion.evaluate.shapes.prompts import Prompt, make_prompts
from transfusion.evaluate.shapes.score import caption_metrics, image_metrics, score, score_caption
from transfusion.evaluate.shapes.words import read_caption
from transfusion.evaluate.world import Judgement, World


def _prompts(config: EvaluateConfig) -> list[Prompt]:
    return [
        prompt
        for task in config.tasks
        for prompt in make_prompts(
            task,
            config.num_single_object if task == "single_object" else config.num_per_task,
            config.seed,
            class_prompt=config.class_prompt,
        )
    ]


def _judge_drawings(prompts: Sequence[Prompt], pictures: Sequence[np.ndarray]) -> Judgement:
    verdicts = [
        score(prompt, detect(picture)) for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    records: list[dict[str, Any]] = [
        {
            "task": prompt.tag,
            "correct": verdict.correct,
            "color_correct": verdict.color_correct,
            "shape_correct": verdict.shape_correct,
            "count_correct": verdict.count_correct,
            "position_correct": verdict.position_correct,
            "reason": verdict.reason,
            "metadata": prompt.metadata(),
        }
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]
    return Judgement(records=records, metrics=image_metrics(prompts, verdicts))


def _judge_captions(described: Sequence[Described]) -> Judgement:
    verdicts = [
        score_caption(one.caption, read_caption(one.reference).looks(), one.reference)
        for one in described
    ]
    records: list[dict[str, Any]] = [
        {
            "color_correct": verdict.color_correct,
            "shape_correct": verdict.shape_correct,
            "exact": verdict.exact,
        }
        for verdict in verdicts
    ]
    return Judgement(records=records, metrics=caption_metrics(verdicts))


WORLD = World(
    make_prompts=_prompts,
    judge_drawings=_judge_drawings,
    judge_captions=_judge_captions,
    knows=lambda scene: "objects" in scene,
    ceiling=scene_metrics,
)
