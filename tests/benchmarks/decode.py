"""What an image costs until it can be encoded: decode, crop, hashes; and what the child process adds.

CPU of one core. Sources are JPEG of noise with the spectrum of photographs, quality 90, cropped to 256 px.
"""

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.crop import center_crop_resize
from data_pipelines.decode import decode
from data_pipelines.decoders import Decoders
from data_pipelines.limits import DecodeLimits
from data_pipelines.preparation import Preparation
from tests.benchmarks.measure import Options, Result, take_turns

SIZE_PX = 256
SOURCES = {"500 x 375": (375, 500), "512 x 512": (512, 512), "1024 x 1024": (1024, 1024)}
LIMITS = DecodeLimits()
REQUEST = 8


def run(options: Options) -> list[Result]:
    """Decoders beside Pillow alone; then the whole preparation here and in a child."""
    results = []
    for name, (height, width) in SOURCES.items():
        data = _jpeg(height, width)
        turns = take_turns(
            {
                "Pillow alone": lambda data=data: _plain(data),
                "exact": lambda data=data: center_crop_resize(decode(data, LIMITS).pixels, SIZE_PX),
                "draft": lambda data=data: center_crop_resize(
                    decode(data, LIMITS, draft_sizes_px=[(SIZE_PX, SIZE_PX)]).pixels, SIZE_PX
                ),
            },
            rounds=3 * options.rounds,
        )
        for way in ("exact", "draft"):
            results.append(
                Result(
                    name=f"decode {name} to {SIZE_PX}, {way}",
                    value=1e3 * turns.median(way),
                    unit="ms/image",
                    reference=1e3 * turns.median("Pillow alone"),
                    ratio=turns.ratio(way, "Pillow alone"),
                    against="Pillow: open, convert, resize, crop",
                )
            )
    return [*results, *_isolation(options)]


def _isolation(options: Options) -> list[Result]:
    data = _jpeg(512, 512)
    preparation = Preparation(LIMITS, ((SIZE_PX, SIZE_PX),))
    decoders = Decoders(1)
    decoders.prepare(preparation, [data])
    here_s, there_s = [], []
    for _ in range(3 * options.rounds):
        here_s.append(_cpu_s(lambda: [preparation(data) for _ in range(REQUEST)], decoders))
        there_s.append(_cpu_s(lambda: decoders.prepare(preparation, [data] * REQUEST), decoders))
    decoders.close()
    here, there = statistics.fmean(here_s), statistics.fmean(there_s)
    return [
        Result(
            name="prepare 512 x 512 in a child",
            value=1e3 * there / REQUEST,
            unit="ms/image",
            reference=1e3 * here / REQUEST,
            ratio=here / there,
            against="in this process, CPU of both sides",
        )
    ]


def _cpu_s(action: Callable[[], object], decoders: Decoders) -> float:
    """CPU seconds of this process and of the decoders'; the kernel counts theirs in hundredths."""
    began = time.process_time() + _children_s(decoders)
    action()
    return time.process_time() + _children_s(decoders) - began


def _children_s(decoders: Decoders) -> float:
    parent = decoders._process.pid
    numbers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ticks = [Path(f"/proc/{n}/stat").read_text().rpartition(")")[2].split()[11:13] for n in numbers]
    return sum(int(user) + int(system) for user, system in ticks) / 100


def _plain(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIZE_PX / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
    )
    left, top = (image.width - SIZE_PX) // 2, (image.height - SIZE_PX) // 2
    return image.crop((left, top, left + SIZE_PX, top + SIZE_PX))


def _jpeg(height: int, width: int) -> bytes:
    side = max(height, width)
    rng = np.random.default_rng(0)
    across = np.fft.fftfreq(side)
    frequency = np.hypot(across[:, None], across[None]) + 1 / side
    spectrum = np.fft.fft2(rng.standard_normal((side, side, 3)), axes=(0, 1))
    pixels = np.fft.ifft2(spectrum / frequency[..., None], axes=(0, 1)).real[:height, :width]
    levels = np.clip(128 + 48 * pixels / pixels.std(), 0, 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(levels).save(data, "JPEG", quality=90)
    return data.getvalue()
