"""Drawing many prompts: seeds, batches, and the files that show them."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from transfusion.package.config import ImageSampling
from transfusion.sample.command import write_png
from transfusion.sample.params import MAX_SEED, SamplingParams
from transfusion.sample.sampler import Sampler

Advance = Callable[[int], None]


def draw_prompts(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    how: ImageSampling,
    seeds: Sequence[int],
    batch_size: int,
    advance: Advance,
) -> list[np.ndarray]:
    """One image a prompt."""
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        batch = [
            sampler.request(
                prompt,
                SamplingParams(
                    solver=how.solver,
                    num_inference_steps=how.num_inference_steps,
                    guidance_scale=how.guidance_scale,
                    seed=seed,
                    modalities=("image",),
                ),
            )
            for prompt, seed in zip(
                prompts[start : start + batch_size], seeds[start : start + batch_size], strict=True
            )
        ]
        images += [image for sample in sampler.sample(batch) for image in sample.images]
        advance(len(batch))
    return images


def seed_of(seed: int, *names: str | int) -> int:
    """A seed of its own for each thing drawn, whatever else is drawn."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") & MAX_SEED


def save_pictures(folder: Path, pictures: Sequence[np.ndarray], suffix: str = "") -> list[str]:
    """Writes numbered PNG files; returns their names relative to the folder above."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index, picture in enumerate(pictures):
        name = f"{index:04}{suffix}.png"
        write_png(folder / name, picture)
        names.append(f"{folder.name}/{name}")
    return names
