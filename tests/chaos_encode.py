"""Encode images while what it runs on is killed, and compare with an undisturbed run.

    python -m tests.chaos_encode --rounds 20 --images 2000 [--kills 5] [--seed 0] [--pictures FOLDER]

Captioned images lie in tars on an S3 server, a Ray cluster of two nodes encodes them onto the same server, and
at random moments something gets SIGKILL: a worker, the second node's raylet, the driver, the S3 server; or a
second driver of the same job begins. What is gone comes back as in life: the node and the server by themselves,
the driver by the same command. A round passes when the manifest's digest is the undisturbed run's, the outcomes
add up, every id is there once and every file is as committed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.chaos import MARK, kill_marked
from tests.s3 import BUCKET, free_port, serve_s3

EVENTS = ("worker", "raylet", "driver", "server", "rival")

JOB = """
store: s3://{bucket}/{store}
stages:
  drawn: {{uses: data_pipelines.sources.shapes, config: {{num_images: 64, seed: 1}}}}
  pixels: {{uses: data_pipelines.pixels, inputs: {{images: drawn}}, config: {{image_size_px: 32}}}}
  autoencoder:
    uses: transfusion.train.autoencoder
    inputs: {{images: pixels}}
    config: {{steps: 2, lr: 1e-3, checkpoint_every_steps: 2, validate_every_steps: 2, heldout_images: 8,
              calibration_images: 16, network: {{block_channels: [8, 16, 16]}}, seed: 0}}
  images: {{uses: data_pipelines.sources.webdataset, config: {{path: "s3://{bucket}/raw"}}}}
  latents:
    uses: data_pipelines.encode_images
    inputs: {{images: images, autoencoder: autoencoder}}
    config: {{image_size_px: 32}}
"""


@dataclass
class Result:
    """What a store holds in the end."""

    digest: str
    outcomes: dict[str, Any]
    keys: int


@dataclass
class Driver:
    """One `transfusion run` and its output."""

    process: subprocess.Popen
    output: IO[str]

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read()


@dataclass
class World:
    """The server, the cluster and the job that the rounds share."""

    folder: Path
    port: int
    mark: str
    servers: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    cluster: Any = None
    node: Any = None

    def start_server(self) -> None:
        os.environ.update(self.servers.enter_context(serve_s3(self.folder, self.port)))

    def restart_server(self, away_s: float) -> None:
        self.servers.close()  # which kills it
        time.sleep(away_s)
        self.start_server()

    def start_cluster(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.add_node()

    def add_node(self) -> None:
        self.node = self.cluster.add_node(num_cpus=1)

    def kill_raylet(self) -> None:
        (raylet,) = self.node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.add_node()

    def kill_worker(self, draws: random.Random) -> bool:
        """Kills one process that is at work for Ray; False when there is none."""
        busy = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (place / "cmdline").read_bytes()
                if words.startswith(b"ray::") and not words.startswith(b"ray::IDLE"):
                    marked = f"{MARK}={self.mark}".encode()
                    if marked in (place / "environ").read_bytes().split(b"\0"):
                        busy.append(int(place.name))
        if not busy:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(draws.choice(sorted(busy)), signal.SIGKILL)
        return True

    def close(self) -> None:
        if self.cluster is not None:
            self.cluster.shutdown()
        self.servers.close()


def make_tars(folder: Path, *, images: int, num_tars: int, pictures: list[Path]) -> None:
    """Drawings and pictures as people store them; now and then one is broken, or has no caption."""
    from data_pipelines.sources.shapes import ShapesConfig, document

    config = ShapesConfig(num_images=images, seed=7)
    folder.mkdir(parents=True)
    for number in range(num_tars):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(number, images, num_tars):
                caption, image = document(config, index).segments
                data, ending = image.data, "png"
                if pictures and index % 4 == 0:
                    picture = pictures[index // 4 % len(pictures)]
                    data, ending = picture.read_bytes(), picture.suffix[1:].lower()
                if index % 149 == 3:
                    data = data[: len(data) // 2]
                _add(tar, f"{index:07d}.{ending}", data)
                if index % 157 != 5:
                    _add(tar, f"{index:07d}.txt", caption.text.encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def world(folder: Path, *, images: int, pictures: list[Path]) -> Iterator[World]:
    """Server, cluster, tars, and a store `base` that holds the autoencoder."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    made = World(folder, free_port(), mark)
    make_tars(
        folder / BUCKET / "raw", images=images, num_tars=max(8, images // 200), pictures=pictures
    )
    try:
        made.start_server()
        made.start_cluster()
        done = start(made, "base", until="autoencoder")
        if done.process.wait():
            raise SystemExit(f"the autoencoder could not be made:\n{done.said()}")
        yield made
    finally:
        made.close()
        del os.environ[MARK]
        kill_marked(mark)


def start(made: World, store: str, until: str = "latents") -> Driver:
    job = made.folder / f"{store}.yaml"
    job.write_text(JOB.format(bucket=BUCKET, store=store))
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, "-m", "transfusion.cli", "run", str(job), "--until", until],
        env=os.environ | {"RAY_ADDRESS": made.cluster.address},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Driver(process, output)


def encode(
    made: World, store: str, *, kills: int, span_s: float, draws: random.Random
) -> Counter[str]:
    """Runs the job until it is done, whatever befalls it; counts what did, and runs that failed with an error."""
    base = made.folder / BUCKET / "base"
    shutil.copytree(base, made.folder / BUCKET / store)
    befell: Counter[str] = Counter()
    drivers = [start(made, store)]
    left = kills
    moment = time.monotonic() + draws.uniform(0.2, 2 * span_s / max(kills, 1))
    while True:
        time.sleep(0.1)
        running = [driver for driver in drivers if driver.process.poll() is None]
        ended = [driver for driver in drivers if driver not in running]
        if any(driver.process.returncode == 0 for driver in ended) and not running:
            return befell
        for driver in ended:
            if driver.process.returncode > 0:
                befell["failed"] += 1
                print(f"  a run ended with an error: {driver.said().strip().splitlines()[-1]}")
        drivers = [d for d in drivers if d in running or d.process.returncode == 0]
        if not running:
            if befell["failed"] + befell["started again"] > 20:
                raise SystemExit(f"{store}: does not come to an end: {dict(befell)}")
            befell["started again"] += 1
            drivers = [*drivers, start(made, store)]
            continue
        if left and time.monotonic() >= moment:
            event = draws.choice(EVENTS)
            if befall(made, event, store, drivers, draws):
                befell[event] += 1
                left -= 1
            moment = time.monotonic() + draws.uniform(0.2, 2 * span_s / kills)


def befall(
    made: World, event: str, store: str, drivers: list[Driver], draws: random.Random
) -> bool:
    if event == "worker":
        return made.kill_worker(draws)
    if event == "raylet":
        made.kill_raylet()
    elif event == "server":
        made.restart_server(draws.uniform(0.5, 4.0))
    elif event == "driver":
        for driver in drivers:
            if driver.process.poll() is None:
                os.kill(driver.process.pid, signal.SIGKILL)
                driver.process.wait()
                break
    elif sum(driver.process.poll() is None for driver in drivers) < 2:
        drivers.append(start(made, store))
    else:
        return False
    return True


def inspect(store_uri: str) -> Result:
    """Reads the one artifact of latents, every file of it, as a later stage would."""
    from transfusion.artifacts.artifact import open_artifact
    from transfusion.artifacts.shards import index_entries, row_entries
    from transfusion.artifacts.tables import load_table
    from transfusion.storage.store import open_store

    store = open_store(store_uri)
    paths = [
        f"{folder}/manifest.json"
        for folder in store.children("data_pipelines.encode_images")
        if store.exists(f"{folder}/manifest.json")
    ]
    assert len(paths) == 1, f"{store_uri}: {len(paths)} artifacts of latents"
    artifact = open_artifact(store, paths[0])
    outcomes = artifact.manifest.content.outcomes
    assert outcomes is not None
    outcomes.check(store_uri)
    keys: list[tuple[str, int]] = []
    for entries in (index_entries(artifact), row_entries(artifact)):
        tables = [load_table(store, entry, ["key", "image_index"]) for entry in entries.values()]
        keys = [(row["key"], row["image_index"]) for table in tables for row in table.to_pylist()]
        assert len(keys) == len(set(keys)) == outcomes.written, (
            f"{store_uri}: ids are not there once"
        )
    for entry in artifact.manifest.content.files:
        artifact.local(entry.name)
    return Result(artifact.manifest.digest, json.loads(outcomes.model_dump_json()), len(keys))


def rounds(
    folder: Path, *, number: int, images: int, kills: int, seed: int, pictures: list[Path]
) -> int:
    """Runs the rounds; how many of them came to the undisturbed run's result."""
    equal = 0
    with world(folder, images=images, pictures=pictures) as made:
        began = time.monotonic()
        befell = encode(made, "calm", kills=0, span_s=0, draws=random.Random(0))
        assert not befell, befell
        calm_s = time.monotonic() - began
        calm = inspect(f"s3://{BUCKET}/calm")
        assert calm.outcomes["input"] == images, calm
        print(f"undisturbed: {calm_s:.0f} s, {calm.outcomes}", flush=True)
        for index in range(number):
            draws, store = random.Random(seed * 1000 + index), f"round{index}"
            began = time.monotonic()
            befell = encode(made, store, kills=kills, span_s=calm_s, draws=draws)
            same = inspect(f"s3://{BUCKET}/{store}") == calm
            equal += same
            seconds = time.monotonic() - began
            told = ", ".join(f"{count} {event}" for event, count in sorted(befell.items()))
            print(
                f"{'equal' if same else 'DIFFERS':8} round {index}: {seconds:.0f} s; {told}",
                flush=True,
            )
            shutil.rmtree(folder / BUCKET / store)
    return equal


def main() -> None:
    """Runs the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="a folder of real images, for every fourth")
    options = parser.parse_args()
    pictures = (
        sorted(
            p for p in options.pictures.rglob("*") if p.suffix.lower() in (".jpg", ".png", ".webp")
        )
        if options.pictures
        else []
    )
    with tempfile.TemporaryDirectory() as folder:
        equal = rounds(
            Path(folder),
            number=options.rounds,
            images=options.images,
            kills=options.kills,
            seed=options.seed,
            pictures=pictures,
        )
    print(f"{equal} of {options.rounds} rounds of {options.images:,} images equal")
    sys.exit(0 if equal == options.rounds else 1)


if __name__ == "__main__":
    main()
