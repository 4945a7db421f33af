"""Encoding a shard: how much of its time the encoder is at work. And what decoding an image costs."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.encode_images.config import EncodeImagesConfig
from data_pipelines.encode_images.run import EncodeShard
from data_pipelines.shards import ShardTask
from data_pipelines.sources.source import open_listing
from tests.benchmarks.measure import Options, Products, Result, take_turns
from tests.pipeline import commit, make
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.publish import publish_folder
from transfusion.autoencoder.autoencoder import Autoencoder, build_network, save_network
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.stage import Made
from transfusion.storage.store import open_store

CASES = {
    #                                block channels, size, source, images, least share
    "quickstart, 32 px":             ((16, 32, 32), 32, 32, 512, 0.5),
    "photographs, 128 px from 256":  ((16, 32, 32, 32), 128, 256, 64, 0.9),
}  # fmt: skip


def run(options: Options) -> list[Result]:
    """One actor with two threads for decoding and one for the encoder, as one core each."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (channels, size_px, source_px, count, bar)) in enumerate(CASES.items()):
            root = Path(folder) / f"store-{number}"
            pictures = Path(folder) / f"pictures-{number}"
            _write_pictures(pictures, count=count, side_px=source_px)
            listing = make(root, "data_pipelines.sources.image_folder", {"path": str(pictures)})
            autoencoder = _autoencoder(root, channels)
            results += _shard(name, root, listing, autoencoder, size_px, count, bar, options)
            results += _decode(name, autoencoder, size_px, options)
    return results


def _shard(
    name: str,
    root: Path,
    listing: Artifact,
    autoencoder: Artifact,
    size_px: int,
    count: int,
    bar: float,
    options: Options,
) -> list[Result]:
    worker = EncodeShard(
        listing,
        autoencoder,
        EncodeImagesConfig(image_size_px=size_px),
        store=open_store(str(root)),
        pool="pool",
        num_decode_threads=2,
        device="cpu",
    )
    (descriptor,) = open_listing(listing).shards
    busy = _Timed(worker._autoencoder.encode)
    worker._autoencoder.encode = busy  # type: ignore[method-assign, assignment]
    seconds, shares = [], []
    for attempt in range(options.rounds + 1):
        busy.seconds = 0.0
        began = time.perf_counter()
        worker.make(ShardTask(f"key-{attempt}", "shard", descriptor))
        seconds.append(time.perf_counter() - began)
        shares.append(busy.seconds / seconds[-1])
    # The first attempt warms up.
    seconds, shares = seconds[1:], shares[1:]
    share = float(np.median(shares))
    rate = count / float(np.median(seconds))
    return [
        Result(
            name=f"encode, {name}",
            value=rate,
            unit="images/s",
            reference=rate / share,
            ratio=share,
            bar=bar,
            against="the encoder alone, busy share",
        )
    ]


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


class _Timed:
    """A function that adds up how long it took."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._function(*arguments)
        finally:
            self.seconds += time.perf_counter() - began


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
