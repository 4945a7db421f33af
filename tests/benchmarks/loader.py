"""Packed batches from a plan: beside a plain read of the same files, and beside the training they feed."""

import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.benchmarks.corpus import LATENT, NUM_PIECES, make_plan
from tests.benchmarks.measure import Options, Result, take_turns
from tests.benchmarks.steps import Training
from tests.benchmarks.worlds import one_process
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import row_entries
from transfusion.ingest.reader import MixtureReader
from transfusion.model.presets import PRESETS
from transfusion.train.parallel import cpu_has_bf16

STEPS = 100
"""Of the plan that training is fed from, at the quickstart's sizes."""

LARGE = (8, 32, 32)
"""Latents of 256 px at a downsampling of 8: 16 KiB of halves each for mean and deviation."""

READ_BAR, DRAWN_BAR = 20_000.0, 5_000.0
"""Images a second; a model of 1.4 B parameters on one H200 takes in about a hundred."""


def run(options: Options) -> list[Result]:
    """Speed of the reader, and how long a training step waits for it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        large = make_plan(
            Path(folder) / "large",
            num_pairs=4_096,
            num_texts=512,
            latent=LARGE,
            rows_per_shard=2_048,
            sources={
                "pairs": {"tokens": "captions", "latents": "latents", "weight": 1.0},
                "prose": {"tokens": "tokens", "weight": 0.02},
            },
            sequence_length=4096,
            sequences_per_micro_batch=4,
            lanes=1,
            num_steps=60,
            shuffle_window=1024,
        )
        results = _speed(large, options)
    with tempfile.TemporaryDirectory() as folder:
        small = make_plan(
            Path(folder) / "small", num_pairs=8_192, num_texts=512, num_steps=STEPS, lanes=1
        )
        return results + _stall(small, options)


def _speed(mixture: Artifact, options: Options) -> list[Result]:
    # Less than the latents take: every turn reads them again, as a run over many shards does.
    reader = MixtureReader(mixture, seed=0, cache_bytes=96 * 2**20)
    images = [0]

    def batches() -> None:
        images[0] = 0
        for step in range(reader.steps):
            images[0] += int(reader.micro_batch(step, 0).image_weight.sum())

    def undrawn() -> None:
        # In this thread: without draws nothing lets go of the interpreter for long; threads only contend for it.
        images[0] = 0
        with mock.patch("transfusion.ingest.images.Draws", _NoDraws):
            for step in range(reader.steps):
                images[0] += int(reader._make(step, 0).image_weight.sum())

    def plain() -> None:
        latents, tokens = mixture.input("latents"), mixture.input("captions")
        for artifact, columns in ((latents, ["mean", "std"]), (tokens, ["ids"])):
            for entry in row_entries(artifact).values():
                place = artifact.store.local(entry.path)
                with pq.ParquetFile(place, memory_map=True) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, columns=columns, use_threads=False)
                        for column in columns:
                            _to_tensor(table[column])

    slots = int(mixture.metadata["image_slots"])

    def draws() -> None:
        drawn = np.empty((slots, *LARGE), np.float32)
        generator = np.random.Generator(np.random.Philox(0))
        for image in drawn:
            generator.standard_normal(out=image, dtype=np.float32)

    compared = {"batches": batches, "undrawn": undrawn, "plain": plain, "draws": draws}
    turns = take_turns(compared, rounds=options.rounds)
    began = time.perf_counter()
    batches()
    per_second = images[0] / (time.perf_counter() - began)
    read_s, drawn_s = turns.median("undrawn") / images[0], turns.median("batches") / images[0]
    plain_s = turns.median("plain") / int(mixture.metadata["statistics"]["pairs"]["documents"])
    needed_s = read_s + 2 * turns.median("draws") / slots
    read, drawn = (
        "loader, 8x32x32 read and packed",
        "loader, 8x32x32 with posterior and noise drawn",
    )
    return [
        _images(read, 1 / read_s, READ_BAR, bar=1.0, against="what is promised, by one thread"),
        _images(read, 1 / read_s, 1 / plain_s, against="a plain pyarrow read, nothing packed"),
        _images(drawn, per_second, DRAWN_BAR, bar=1.0, against="what is promised of a process"),
        _images(drawn, 1 / drawn_s, 1 / needed_s, against="reading and packing, and bare draws"),
    ]


def _images(
    name: str, value: float, reference: float, *, against: str, bar: float | None = None
) -> Result:
    ratio = value / reference
    return Result(
        name=name,
        value=value,
        unit="images/s",
        reference=reference,
        ratio=ratio,
        bar=bar,
        against=against,
    )


class _NoDraws:
    """Stands where the draws are, and leaves everything at zero: what remains is reading and packing."""

    def __init__(self, seed: int, purpose: int) -> None:
        pass

    def at(self, *counters: int) -> "_NoDraws":
        return self

    def random(self, count: int) -> list[float]:
        return [0.5] * count

    def standard_normal(self, *, out: np.ndarray, dtype: Any) -> None:
        """Draws nothing."""
        out.fill(0.0)


def _to_tensor(column: object) -> torch.Tensor:
    array = column.combine_chunks()  # type: ignore[attr-defined]
    data = np.frombuffer(array.buffers()[2], np.uint8)
    return torch.from_numpy(data.copy())


def _stall(mixture: Artifact, options: Options) -> list[Result]:
    reader = MixtureReader(mixture, seed=0)
    steps = min(5 * options.rounds, STEPS - 3)
    with one_process():
        training = Training(
            reader,
            PRESETS["quickstart"],
            precision="fp32_bf16_inner" if cpu_has_bf16() else "fp32",
            num_pieces=NUM_PIECES,
            latent_channels=LATENT[0],
        )
        for _ in range(2):
            training.step()
        began, began_cpu = time.perf_counter(), time.process_time()
        waited = sum(training.step().data_s for _ in range(steps))
        share = waited / (time.perf_counter() - began)
        trained_s = (time.process_time() - began_cpu) / steps
    other = MixtureReader(mixture, seed=0)
    other.micro_batch(0, 0)
    began = time.process_time()
    for step in range(1, STEPS):
        other.micro_batch(step, 0)
    loaded_s = (time.process_time() - began) / (STEPS - 1)
    positions = mixture.metadata["sequence_length"] * mixture.metadata["sequences_per_micro_batch"]
    return [
        Result(
            name="loader, positions in packed batches",
            value=positions / loaded_s,
            unit="positions/s",
            reference=positions / trained_s,
            ratio=trained_s / loaded_s,
            bar=10.0,
            against="what the quickstart's training takes in",
        ),
        Result(
            name="data stall, share of a training step",
            value=100 * share,
            unit="%",
            reference=2.0,
            ratio=0.02 / max(share, 1e-9),
            bar=1.0,
            against="the most that is allowed",
        ),
    ]
