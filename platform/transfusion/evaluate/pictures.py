"""Drawing many prompts: seeds, batches, and the files that show them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from transfusion.evaluate.batches import Advance, in_batches
from transfusion.package.config import ImageSampling
from transfusion.sample.params import MAX_SEED, SamplingParams
from transfusion.sample.pictures import write_png
from transfusion.sample.sampler import Sampler


def draw_prompts(
    sampler: Sampler,
    prompts: Sequence[str],
    *,
    how: ImageSampling,
    seeds: Sequence[int],
    workers: ThreadPoolExecutor,
    batch_size: int,
    advance: Advance,
) -> list[np.ndarray]:
    """One image a prompt."""

    def draw(batch: Sequence[tuple[str, int]]) -> list[np.ndarray]:
        requests = [sampler.request(prompt, image_params(how, seed)) for prompt, seed in batch]
        return [image for sample in sampler.sample(requests) for image in sample.images]

    pairs = list(zip(prompts, seeds, strict=True))
    return in_batches(workers, draw, pairs, batch_size=batch_size, advance=advance)


def image_params(
    how: ImageSampling, seed: int, *, image_guidance_scale: float | None = None
) -> SamplingParams:
    """How one image is asked for.

    Args:
        image_guidance_scale: Of an edit: how close it keeps to the image that is edited.
    """
    return SamplingParams(
        solver=how.solver,
        num_inference_steps=how.num_inference_steps,
        guidance_scale=how.guidance_scale,
        code_temperature=how.code_temperature,
        code_top_p=how.code_top_p,
        image_guidance_scale=image_guidance_scale,
        seed=seed,
        modalities=("image",),
    )


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
