"""A small model and made-up batches, trained in one process or in several over gloo, without Ray."""

import contextlib
import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.tiny import LATENT, NUM_PIECES, model_config
from transfusion.resources import Resources, TrainResources
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.stage import Progress, StageContext
from transfusion.storage.store import open_store
from transfusion.train.config import TrainConfig
from transfusion.train.finish import run_to_end
from transfusion.train.step import TransformerTrainee
from transfusion.train.trainee import Trainee

SPECIAL = SpecialIds.after(NUM_PIECES)
FINGERPRINT = "f" * 64


class MadeUpSource:
    """Batches that are a function of (step, lane); captions of different lengths, so that counts differ."""

    def __init__(
        self,
        lanes: int = 3,
        spoilt: Collection[tuple[int, int]] = (),
        loud: Collection[int] = (),
        scale: int = 1,
    ) -> None:
        self.lanes = lanes
        self.num_validation = 2
        self._spoilt = spoilt
        self._loud = loud
        self._scale = scale
        """Latents are so many times as high and as wide."""
        self._shape = (LATENT[0], scale * LATENT[1], scale * LATENT[2])

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        batch = self._batch(np.random.default_rng([step, lane]))
        if step in self._loud:
            batch.noise.mul_(30)
        if (step, lane) in self._spoilt:
            batch.latents[0, 0, 0, 0] = float("nan")
        return batch

    def validation(self, index: int) -> PackedBatch:
        return self._batch(np.random.default_rng([99, 99, index]))

    def zero_batch(self) -> PackedBatch:
        return self._assemble([[], []])

    def document_ids(self, step: int, lane: int) -> list[str]:
        return [f"document-{step}-{lane}-{index}" for index in range(2)]

    def _batch(self, draw: np.random.Generator) -> PackedBatch:
        sequences = []
        for _ in range(2):
            documents = []
            for _ in range(int(draw.integers(1, 3))):
                length = int(draw.integers(2, 6))
                text = TextSpan(draw.integers(0, NUM_PIECES, length).astype(np.int32))
                image = ImageInput(
                    latent=draw.standard_normal(self._shape, np.float32),
                    noise=draw.standard_normal(self._shape, np.float32),
                    timestep=int(draw.integers(0, 1000)),
                )
                documents.append(
                    Document((text, ImageSpan(2 * self._scale, 2 * self._scale, image)))
                )
            sequences.append(documents)
        return self._assemble(sequences)

    def _assemble(self, sequences: list[list[Document]]) -> PackedBatch:
        return assemble(
            sequences,
            layout=SequenceLayout(patch_size=2),
            special=SPECIAL,
            sequence_length=32 * self._scale,
            image_slots=4,
            text_rows=40,
            latent_shape=self._shape,
        )


def config(**changed: Any) -> TrainConfig:
    values = {
        # A U-Net has four times as many tensors, and checkpoints of them are most of a tiny run.
        "model": model_config("linear"),
        "steps": 6,
        "lr": 3e-3,
        "warmup_steps": 2,
        "checkpoint_every_steps": 2,
        "validate_every_steps": 3,
        "seed": 7,
    }
    return TrainConfig(**(values | changed))


def make_trainee(
    settings: TrainConfig, source: MadeUpSource, resources: TrainResources | None = None
) -> TransformerTrainee:
    return TransformerTrainee(
        settings,
        source,
        num_pieces=NUM_PIECES,
        latent_channels=LATENT[0],
        device=torch.device("cpu"),
        resources=resources or TrainResources(),
    )


def train(
    folder: Path,
    *,
    settings: TrainConfig | None = None,
    source: MadeUpSource | None = None,
    stop_after: int | None = None,
    resources: TrainResources | None = None,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """A run in the world that this process is in. `stop_after` ends it as a crash would."""
    trainee = make_trainee(settings or config(), source or MadeUpSource(), resources)
    return train_as(
        trainee, folder, stop_after=stop_after, resources=resources, stop=stop, save=save
    )


def train_as(
    trainee: Trainee, folder: Path, *, stop_after: int | None = None, **options: Any
) -> dict[str, Any]:
    """As `train` has it, of any trainee; `options` go to `run_to_end`."""

    def tell(step: int, _: object) -> None:
        if step == stop_after:
            raise InterruptedError(step)

    return run_to_end(
        trainee,
        store=open_store(str(folder)),
        folder="run",
        fingerprint=FINGERPRINT,
        name="test",
        scratch=folder,
        tracking="none",
        tell=tell,
        **options,
    )


def stage_context(folder: Path, resources: Resources | None = None) -> StageContext:
    """For a stage of the address `run`, as in `train`; it logs to `transfusion.test`, progress at every step."""
    log = logging.getLogger("transfusion.test")
    return StageContext(
        name="train",
        uses="run",
        version=1,
        fingerprint=FINGERPRINT,
        store=open_store(str(folder)),
        resources=resources or Resources(),
        scratch=folder,
        log=log,
        progress=lambda **told: Progress(log, every_s=0.0, **told),
    )


def in_world(
    size: int, function: Callable[..., None], *arguments: Any, timeout_s: float = 600.0
) -> None:
    """Calls `function(*arguments)` in `size` processes joined over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        world = (size, f"file://{folder}/meeting", timeout_s)
        # Forked from a process that has torch and nothing running: imports are most of a short test.
        multiprocessing.set_forkserver_preload([__name__])
        torch.multiprocessing.start_processes(
            _member, (world, function, arguments), nprocs=size, start_method="forkserver"
        )


def _member(
    rank: int,
    world: tuple[int, str, float],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    size, meeting, timeout_s = world
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    function(*arguments)
    dist.barrier()
    dist.destroy_process_group()


def train_and_keep(folder: Path, adapter: str = "linear") -> None:
    """For `in_world`: trains and leaves the outcome beside the store."""
    outcome = train(folder, settings=config(model=model_config(adapter)))
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))


def stop_after_four_steps(folder: Path, adapter: str = "linear") -> None:
    """For `in_world`: a run that ends as a crash would."""
    stop_after = 4 if dist.get_rank() == 0 else None
    train(folder, settings=config(model=model_config(adapter)), stop_after=stop_after)


class SignalledSource(MadeUpSource):
    """Sends a process a signal, once: SIGKILL, as the kernel does when memory runs out, or SIGTERM."""

    def __init__(self, marker: Path, number: int, victim: str) -> None:
        super().__init__()
        self._marker = marker
        self._number = number
        self._victim = victim

    def micro_batch(self, step: int, lane: int) -> PackedBatch:
        if (step, lane) == (4, 1) and not self._marker.exists():
            self._marker.touch()
            pid = os.getpid() if self._victim == "worker" else controller()
            os.kill(pid, self._number)
        return super().micro_batch(step, lane)


def controller() -> int:
    """The process of Ray Train's controller in the Ray of this worker; others on this machine stay alive.

    The youngest: that of a run before may not have ended yet.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::TrainController"):
                parent, started = parent_and_start(folder)
                if parent == os.getppid():
                    found.append((started, int(folder.name)))
    return max(found)[1]


def parent_and_start(process: Path) -> tuple[int, int]:
    """Of a folder in /proc: fields 4 and 22, counted from behind the name, which may hold anything."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[19])


def build(
    values: dict[str, Any], inputs: dict[str, Any], device: torch.device, resources: TrainResources
) -> Any:
    """What a Ray Train worker calls; `case` stands beside the config."""
    case = values.pop("case")
    source = MadeUpSource(spoilt=[(3, 0)])
    if case["marker"]:
        source = SignalledSource(Path(case["marker"]), case["signal"], case["victim"])
    return make_trainee(TrainConfig.model_validate_json(json.dumps(values)), source, resources)
