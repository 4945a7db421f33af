"""What a run adds to its steps: one worker on Ray trains, and its own rows say where the time went."""

import json
import logging
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.corpus import make_plan
from tests.benchmarks.measure import Options, Result
from tests.pipeline import make
from transfusion.model.presets import PRESETS
from transfusion.resources import Resources, TrainResources
from transfusion.runner.cluster import start_ray, stop_ray
from transfusion.train.parallel import cpu_has_bf16

STEPS_A_ROUND = 20
WARM_UP_STEPS = 10
BAR = 0.05
"""Most of a run's time, checkpoints and validation left out, that is not forward, backward and optimizer."""
STEP = ("forward_s", "backward_s", "compute_s", "optimizer_s")
LOOP = ("data_s", "other_s")
"""Waiting for a batch; and rows of metrics, progress, messages, and whatever else no part explains."""


def run(options: Options) -> list[Result]:
    """The quickstart's model on made-up documents, by the stage's own body."""
    steps = WARM_UP_STEPS + STEPS_A_ROUND * options.rounds
    torch.set_num_threads(1)
    start_ray(num_cpus=2, log=logging.getLogger(__name__))
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "store"
            mixture = make_plan(root, num_pairs=8_192, num_texts=512, num_steps=steps, lanes=1)
            trained = make(
                root,
                "transfusion.train",
                {
                    "steps": steps,
                    "lr": 1e-3,
                    "precision": "fp32_bf16_inner" if cpu_has_bf16() else "fp32",
                    "checkpoint_every_steps": steps,
                    "validate_every_steps": steps,
                    "model": PRESETS["quickstart"].resolved(),
                    "seed": 0,
                },
                {"mixture": mixture},
                Resources(num_cpus=2, train=TrainResources(num_workers=1, cpus_per_worker=1)),
            )
            rows = [json.loads(line) for line in trained.read("metrics.jsonl").splitlines()]
    finally:
        stop_ray()
    timings = [row["timing"] for row in rows if row["kind"] == "train"][WARM_UP_STEPS:]
    inside, outside = (
        sum(timing.get(name, 0.0) for timing in timings for name in names) for names in (STEP, LOOP)
    )
    share = outside / (inside + outside)
    return [
        Result(
            name="loop outside the step, one worker on Ray",
            value=100 * share,
            unit="%",
            reference=100 * BAR,
            ratio=BAR / max(share, 1e-9),
            bar=1.0,
            against="the most that is allowed",
        )
    ]
