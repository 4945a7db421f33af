"""Mixing: half text, half images in one engine, beside the two kinds in turn; and the most that it could give.

In turn the two take the time of an image step and of a text step, mixed at the least that of the image step: the
text rows then ride along for nothing. So no engine gains more than 1 + text step / image step, which the result is
told beside: 1.3 is asked for where so much can be had, and else nine tenths of what can.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.measure import Options, Result, take_turns
from tests.benchmarks.sampler import IMAGE, STEPS, TEXT, make_model
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.engine import Engine, generate
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request

PREFIX = 70
COUNTS = (4, 16)
"""Images, and as many texts."""

SETTLED = 2
"""Steps until all are in their course: the prompt, and what opens an image."""


def run(options: Options) -> list[Result]:
    """On the model of the sampler's benchmark."""
    torch.set_num_threads(1)
    keep_freed_memory()
    model, config = make_model()
    results = []
    for count in COUNTS:
        results += measure(model, config, count=count, steps=STEPS, rounds=options.rounds)
    return results


def measure(
    model: TransfusionModel,
    config: PackageConfig,
    *,
    count: int,
    steps: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> list[Result]:
    """`count` images of `steps` steps and as many texts of as many tokens."""
    image = {**IMAGE, "num_inference_steps": steps}
    text = {**TEXT, "max_tokens": steps, "ignore_eos": True}
    images, texts = (
        [
            Request((TextPart(tuple(range(1, PREFIX))),), SamplingParams(**params, seed=seed))
            for seed in range(count)
        ]
        for params in (image, text)
    )
    both = [one for pair in zip(images, texts, strict=True) for one in pair]

    def in_turn() -> None:
        generate(model, config, images)
        generate(model, config, texts)

    turns = take_turns(
        {"mixed": lambda: generate(model, config, both), "in turn": in_turn},
        rounds=rounds,
        clock=clock,
    )
    of = {"images": images, "texts": texts, "both": both}
    took = _steps(model, config, of, steps=steps, rounds=rounds, clock=clock)
    most = 1 + took["texts"] / took["images"]
    name = f"mixing {count} images and {count} texts of {steps}"
    positions = 2 * count * config.num_patches
    ms = {kind: 1e3 * seconds for kind, seconds in took.items()}
    ride = max(ms["both"] - ms["images"], 0.0) / count
    return [
        Result(
            name=name,
            value=turns.median("mixed"),
            unit="s",
            reference=turns.median("in turn"),
            ratio=turns.ratio("mixed", "in turn"),
            bar=min(1.3, 0.9 * most),
            against=f"the two in turn, of which mixing could save all but 1/{most:.2f}",
        ),
        Result(
            name=f"{name}: a step of both",
            value=ms["both"],
            unit="ms",
            reference=ms["images"] + ms["texts"],
            ratio=(ms["images"] + ms["texts"]) / ms["both"],
            against=f"one of images ({ms['images']:.3g}) and one of texts ({ms['texts']:.3g})",
        ),
        Result(
            name=f"{name}: a text's row in a step of both",
            value=ride,
            unit="ms",
            reference=ms["texts"] / count,
            ratio=ms["texts"] / count / ride if ride else None,
            against="one in a step of texts",
        ),
        Result(
            name=f"{name}: a patch's row",
            value=ms["images"] / positions,
            unit="ms",
            reference=ride,
            against="a text's row in a step of both",
        ),
    ]


def _steps(
    model: TransfusionModel,
    config: PackageConfig,
    of: dict[str, list[Request]],
    *,
    steps: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Seconds of a settled step of each, step by step in turn."""
    seconds: dict[str, list[float]] = {kind: [] for kind in of}
    for _ in range(rounds):
        engines: dict[str, Any] = {}
        for kind, requests in of.items():
            engines[kind] = Engine(model, config, max_rows=len(requests))
            engines[kind].submit(requests)
            for _ in range(SETTLED):
                engines[kind].step()
        for _ in range(steps - SETTLED - 1):
            for kind, engine in engines.items():
                began = clock()
                engine.step()
                seconds[kind].append(clock() - began)
    return {kind: statistics.median(every) for kind, every in seconds.items()}
