"""Packed batches from a plan: beside a plain read of the same files, and beside the training they feed."""

import tempfile
import time
from pathlib import Path

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

NUM_PAIRS, NUM_TEXTS, STEPS = 8_192, 512, 100


def run(options: Options) -> list[Result]:
    """Speed of the reader, and how long a training step waits for it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        mixture = make_plan(
            Path(folder) / "store",
            num_pairs=NUM_PAIRS,
            num_texts=NUM_TEXTS,
            num_steps=STEPS,
            lanes=1,
        )
        return _speed(mixture, options) + _stall(mixture, options)


def _speed(mixture: Artifact, options: Options) -> list[Result]:
    images = [0]

    def batches() -> None:
        reader = MixtureReader(mixture, seed=0)
        images[0] = 0
        for step in range(reader.steps):
            images[0] += int(reader.micro_batch(step, 0).image_weight.sum())

    rows = [0]

    def plain() -> None:
        latents, tokens = mixture.input("latents"), mixture.input("captions")
        rows[0] = 0
        for artifact, columns in ((latents, ["mean", "std"]), (tokens, ["ids"])):
            for entry in row_entries(artifact).values():
                place = artifact.store.local(entry.path)
                with pq.ParquetFile(place, memory_map=True) as file:
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group, columns=columns, use_threads=False)
                        for column in columns:
                            _to_tensor(table[column])
                        rows[0] += table.num_rows if columns[0] == "mean" else 0

    shape = (1 + rows_of_draws(mixture), *LATENT)

    def draws() -> None:
        np.random.default_rng(0).standard_normal(shape, np.float32)

    turns = take_turns({"batches": batches, "plain": plain, "draws": draws}, rounds=options.rounds)
    per_image = turns.median("batches") / images[0]
    plain_per_image = turns.median("plain") / rows[0]
    needed = plain_per_image + 2 * turns.median("draws") / shape[0]
    return [
        Result(
            name="loader, latents in packed batches",
            value=1 / per_image,
            unit="images/s",
            reference=1 / plain_per_image,
            ratio=plain_per_image / per_image,
            against="a plain pyarrow read of the same rows",
        ),
        Result(
            name="loader, latents in packed batches",
            value=1 / per_image,
            unit="images/s",
            reference=1 / needed,
            ratio=needed / per_image,
            against="that read and the draws of posterior and noise",
        ),
    ]


def rows_of_draws(mixture: Artifact) -> int:
    """Images of a plan's step, to draw as many numbers at a time as the reader does."""
    return int(mixture.metadata["image_slots"])


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
