"""Flat cost: what an image costs beside its encoder, at 10^4, 10^5 and more images.

    python -m tests.benchmarks.flat [--images 10000 100000]

Tiny images in tars of a thousand, an encoder that does nothing, two actors on a Ray of this machine. Every count
runs in a process of its own, in the order given; a count that stands there several times, among the others, is
reported by its median. `1000000` takes about four minutes. Not among `python -m tests.benchmarks`.
"""

import argparse
import functools
import io
import json
import logging
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.encode_images.shard import EncodeShard
from data_pipelines.shards import Attempt, ShardTask, WorkerFactory, on_ray
from tests.benchmarks.encode import _autoencoder
from tests.benchmarks.machine import peak_mib
from tests.pipeline import make
from transfusion.autoencoder.network import Posterior
from transfusion.resources import PoolResources

IMAGES_PER_TAR = 1000
SIDE_PX = 16


class StubShard(EncodeShard):
    """Encodes at once, to latents of the right shape."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        noise = torch.randn(32, 8, 4, 4)
        posterior = Posterior(mean=noise, std=noise.abs())
        self._encoder._autoencoder.encode = lambda images: posterior  # type: ignore[method-assign]


class Watch:
    """A launch that runs the stub, and notes when the first and the last shard were there."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def __call__(
        self, factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
    ) -> Iterator[Attempt]:
        assert isinstance(factory, functools.partial)
        stub = functools.partial(StubShard, *factory.args, **factory.keywords)
        for attempt in on_ray(stub, tasks, resources):
            self.ends_s.append(time.perf_counter())
            yield attempt


def measure(count: int) -> dict[str, float]:
    """One count, in this process."""
    from transfusion.runner.cluster import start_ray, stop_ray

    with tempfile.TemporaryDirectory() as folder:
        root, tars = Path(folder) / "store", Path(folder) / "tars"
        _write_tars(tars, count)
        start_ray(num_cpus=2, log=logging.getLogger("benchmark"))
        listing = make(root, "data_pipelines.sources.webdataset", {"path": str(tars)})
        inputs = {"images": listing, "autoencoder": _autoencoder(root, (16, 32, 32))}
        watch, began, cpu_s = Watch(), time.perf_counter(), time.process_time()
        made = make(
            root, "data_pipelines.encode_images", {"image_size_px": SIDE_PX}, inputs, launch=watch
        )
        cpu_s = time.process_time() - cpu_s
        outcomes = made.manifest.content.outcomes
        assert outcomes is not None
        assert (outcomes.input, outcomes.written) == (count, count)
        again = time.perf_counter()
        make(root, "data_pipelines.encode_images", {"image_size_px": SIDE_PX}, inputs, launch=watch)
        again = time.perf_counter() - again
        stop_ray()
    # A slope: first to last end, by the number of shards between, is a tenth too low for ten shards that two
    # actors end in pairs.
    between = 1 / np.polyfit(watch.ends_s, np.arange(len(watch.ends_s)), 1)[0]
    return {
        "images": count,
        "us an image": round(1e6 * between / IMAGES_PER_TAR, 1),
        "driver CPU us an image": round(1e6 * cpu_s / count, 1),
        "first shard s": round(watch.ends_s[0] - began, 1),
        "again s": round(again, 2),
        "driver MiB": round(peak_mib()),
    }


def _write_tars(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8)).save(data, "JPEG")
        files.append(data.getvalue())
    for first in range(0, count, IMAGES_PER_TAR):
        with tarfile.open(folder / f"{first // IMAGES_PER_TAR:06d}.tar", "w") as tar:
            for number in range(first, min(first + IMAGES_PER_TAR, count)):
                image = files[number % len(files)]
                for name, data in ((f"{number:09d}.jpg", image), (f"{number:09d}.txt", b"noise")):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def main() -> int:
    """Prints a line a count, and fails when a count costs much more than the first."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.flat", description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.here)))
        return 0
    rows = []
    for count in arguments.images:
        command = [sys.executable, "-m", "tests.benchmarks.flat", "--here", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)

    def typical(count: int, column: str) -> float:
        return statistics.median(row[column] for row in rows if row["images"] == count)

    least, most = min(arguments.images), max(arguments.images)
    slower = typical(most, "us an image") / typical(least, "us an image")
    more_mib = typical(most, "driver MiB") - typical(least, "driver MiB")
    print(
        f"{slower - 1:+.0%} an image (allowed +15%), {more_mib:+.0f} MiB of the driver (allowed +200)"
    )
    return 1 if slower > 1.15 or more_mib > 200 else 0


if __name__ == "__main__":
    sys.exit(main())
