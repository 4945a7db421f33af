"""Trains a tiny model for many steps and looks for what grows: memory, open files, threads.

    python -m tests.leaks [--steps 1000] [--warmup 200]

Everything that a worker does is in it: batches of a mixture read ahead, a U-Net, metrics, validation, previews,
checkpoints in the background. Ray is not. It passes when the
resident memory of the last tenth is within 2% of that of the tenth after the warm-up (median against median,
with `malloc_trim` before each look, so that it is what is held and not what the allocator keeps), and open
files and threads are the same.
"""

import argparse
import ctypes
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from tests.pipeline import make_mixture
from tests.tiny import model_config
from tests.train.worlds import config
from transfusion.resources import TrainResources
from transfusion.storage.store import open_store
from transfusion.train.finish import run_to_end
from transfusion.train.run import build

GROWTH = 0.02


class Look(NamedTuple):
    """What the process holds after a step."""

    step: int
    rss_bytes: int
    open_files: int
    threads: int


def look(step: int) -> Look:
    """What this process holds now."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Look(
        step,
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(list(Path("/proc/self/fd").iterdir())),
        threading.active_count(),
    )


def train(folder: Path, *, steps: int, every: int) -> list[Look]:
    """A run over so many steps; what was held after each `every`."""
    looks: list[Look] = []

    def tell(step: int, _: object) -> None:
        if step and step % every == 0:
            looks.append(look(step))

    settings = config(
        model=model_config("unet"),
        steps=steps,
        validate_every_steps=50,
        checkpoint_every_steps=50,
        preview_every_steps=max(50, steps // 8),
        warmup_steps=10,
    )
    # A cache that holds a part of what is read, so that things come and go.
    resources = TrainResources(checkpoint_async=True, data_cache_gib=2**-12)
    mixture = make_mixture(folder / "store", num_steps=steps, lanes=1, shuffle_window=32)
    run_to_end(
        build(settings.resolved(), {"mixture": mixture}, torch.device("cpu"), resources),
        store=open_store(str(folder)),
        folder="run",
        fingerprint="f" * 64,
        name="leaks",
        scratch=folder,
        tracking="none",
        tell=tell,
        resources=resources,
    )
    return looks


def main() -> None:
    """Runs it and says what grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1
        )
        looks = train(folder, steps=options.steps, every=5)
        dist.destroy_process_group()
    tenth = (options.steps - options.warmup) // 10
    early = [one for one in looks if options.warmup < one.step <= options.warmup + tenth]
    late = [one for one in looks if one.step > options.steps - tenth]
    before, after = (
        Look(*(int(statistics.median(values)) for values in zip(*some, strict=True)))
        for some in (early, late)
    )
    growth = after.rss_bytes / before.rss_bytes - 1
    print(
        f"{options.steps} steps in {time.monotonic() - began:.0f} s: "
        f"memory {before.rss_bytes / 2**20:.1f} -> {after.rss_bytes / 2**20:.1f} MiB ({growth:+.2%}, "
        f"allowed {GROWTH:+.0%}), open files {before.open_files} -> {after.open_files}, "
        f"threads {before.threads} -> {after.threads}"
    )
    grew = growth > GROWTH or after.open_files > before.open_files or after.threads > before.threads
    sys.exit(1 if grew else 0)


if __name__ == "__main__":
    main()
