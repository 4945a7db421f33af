"""Encoding a shard: how much of its time the encoder is at work. And what decoding an image costs."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.encode_images.shard import EncodeShard
from data_pipelines.shards import ShardTask
from data_pipelines.sources.source import open_listing
from tests.benchmarks.measure import Options, Products, Result, take_turns
from tests.pipeline import commit, make
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.publish import publish_folder
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import Posterior, build_network, save_network
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.resources import PoolResources
from transfusion.stage import Made
from transfusion.storage.store import open_store

MICRO_BATCH = 32
SHARDS = 4
"""Of a case; the first one warms up and is not counted."""

STUB_S = 0.67e-3
"""Seconds an image of an encoder that does nothing: a data-centre GPU at 1,500 images a second."""

OVERHEAD_US = 35.0
"""Of the encoder's thread an image, at most: a twentieth of what the stub takes."""

CASES = {
    #                            block channels, size, source, images a shard, least share
    "stub of 0.67 ms":           ((16, 32, 32), 32, 32, 1024, 0.95),
    "quickstart, 32 px":         ((16, 32, 32), 32, 32, 512, 0.95),
    "photographs, 128 px":       ((16, 32, 32, 32), 128, 256, 192, 0.95),
    "Stable Diffusion, 128 px":  ((128, 256, 512, 512), 128, 256, 4, 0.95),
}  # fmt: skip


def run(options: Options) -> list[Result]:
    """One worker with one decoder beside the encoder's thread."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (channels, size_px, source_px, count, bar)) in enumerate(CASES.items()):
            root = Path(folder) / f"store-{number}"
            pictures = Path(folder) / f"pictures-{number}"
            _write_pictures(pictures, count=count, side_px=source_px)
            listing = make(root, "data_pipelines.sources.image_folder", {"path": str(pictures)})
            autoencoder = _autoencoder(root, channels)
            results += _shards(name, root, listing, autoencoder, size_px, count, bar)
            if name.startswith(("quickstart", "photographs")):
                results += _decode(name, autoencoder, size_px, options)
    return results


def _shards(
    name: str,
    root: Path,
    listing: Artifact,
    autoencoder: Artifact,
    size_px: int,
    count: int,
    bar: float,
) -> list[Result]:
    worker = _Watched(
        listing,
        autoencoder,
        EncodeImagesConfig(image_size_px=size_px, micro_batch=min(count, MICRO_BATCH)),
        store=open_store(str(root)),
        pool="pool",
        resources=PoolResources(),
    )
    if name.startswith("stub"):
        worker._encoder._autoencoder.encode = _Stub()  # type: ignore[method-assign, assignment]
    (descriptor,) = open_listing(listing).shards
    tasks = [ShardTask(f"key-{number}", f"shard-{number}", descriptor) for number in range(SHARDS)]
    with ThreadPoolExecutor(worker.shards_at_once) as threads:
        measured = list(threads.map(worker.make, tasks))[1:]
    busy_s, span_s = sum(m.busy_s for m in measured), sum(m.span_s for m in measured)
    images = count * len(measured)
    return [
        Result(
            name=f"encode, {name}",
            value=images / span_s,
            unit="images/s",
            reference=images / busy_s,
            ratio=busy_s / span_s,
            bar=bar,
            against="the encoder alone, busy share",
        ),
        Result(
            name=f"encode, {name}: the encoder's thread between batches",
            value=1e6 * worker.overhead_s / (count * SHARDS),
            unit="us/image",
            reference=OVERHEAD_US,
            ratio=OVERHEAD_US / (1e6 * worker.overhead_s / (count * SHARDS)),
            bar=1.0 if name.startswith("stub") else None,
            against="what is allowed, CPU",
        ),
    ]


class _Watched(EncodeShard):
    """Adds up the CPU seconds of the encoder's thread in which it does not encode."""

    overhead_s = 0.0

    def _encode(self, batches: Any) -> Any:
        inner, encoding_s = self._encoder.encode, 0.0

        def encode(images: torch.Tensor) -> Any:
            nonlocal encoding_s
            began = time.thread_time()
            try:
                return inner(images)
            finally:
                encoding_s += time.thread_time() - began

        self._encoder.encode = encode  # type: ignore[method-assign]
        began = time.thread_time()
        try:
            return super()._encode(batches)
        finally:
            self._encoder.encode = inner  # type: ignore[method-assign]
            self.overhead_s += time.thread_time() - began - encoding_s


class _Stub:
    """Waits as one waits for a GPU, and hands out latents of 256 px images."""

    def __init__(self) -> None:
        noise = torch.randn(MICRO_BATCH, 8, 32, 32)
        self._posterior = Posterior(mean=noise, std=noise.abs())

    def __call__(self, images: torch.Tensor) -> Posterior:
        time.sleep(STUB_S * len(images))
        return self._posterior


def _decode(name: str, artifact: Artifact, size_px: int, options: Options) -> list[Result]:
    autoencoder = Autoencoder.load(artifact.folder())
    latents = torch.randn(8, *autoencoder.latent_shape(size_px, size_px))
    with torch.no_grad(), Products() as products:
        autoencoder.decode(latents)
    turns = take_turns(
        {"decode": lambda: autoencoder.decode(latents), "products": products.run},
        rounds=options.rounds,
    )
    return [
        Result(
            name=f"decode, {name}",
            value=1e3 * turns.median("decode") / 8,
            unit="ms/image",
            reference=1e3 * turns.median("products") / 8,
            ratio=1 / turns.ratio("products", "decode"),
            against="its own convolutions, bare",
        )
    ]


def _write_pictures(folder: Path, *, count: int, side_px: int) -> None:
    """JPEG files with the detail of photographs: noise that falls off with frequency."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    across = np.fft.fftfreq(side_px)
    frequency = np.hypot(across[:, None], across[None]) + 1 / side_px
    for number in range(count):
        spectrum = np.fft.fft2(rng.standard_normal((side_px, side_px, 3)), axes=(0, 1))
        pixels = np.fft.ifft2(spectrum / frequency[..., None], axes=(0, 1)).real
        pixels = np.clip(128 + 48 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)
        (folder / f"{number:05d}.txt").write_text("a picture")


def _autoencoder(root: Path, channels: tuple[int, ...]) -> Artifact:
    import importlib

    torch.manual_seed(0)
    network = build_network(AutoencoderConfig(block_channels=channels), sample_size_px=32)
    folder = root.parent / f"{root.name}-autoencoder"
    save_network(folder, config=network.config, weights=network.state_dict())
    LatentStatistics(shift=(0.0,) * 8, scale=(1.0,) * 8, num_images=1).write(folder)
    uses = "transfusion.train.autoencoder"
    store = open_store(str(root))
    files = publish_folder(store, f"{uses}/files", folder)
    stage = importlib.import_module(uses).STAGE
    return commit(store, uses, stage, "a" * 64, {}, {}, Made(files=files))
