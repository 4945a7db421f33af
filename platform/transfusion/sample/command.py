"""What `transfusion sample` does: a prompt, an image or both in, numbered files out."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from transfusion.errors import SpecError
from transfusion.package.format import PackageConfig
from transfusion.package.load import load_package
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.params import Modality, SamplingParams, params_with
from transfusion.sample.pictures import to_square, write_png
from transfusion.sample.prompts import continued, infilled, sample_prompts
from transfusion.sample.sampler import Sampler, Segment

MODALITIES: dict[str, tuple[Modality, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "free": ("text", "image"),
    "edit": ("image",),
    "infill": ("image",),
}

IMAGE_GUIDANCE = 1.5
"""Of an edit, unless told otherwise: InstructPix2Pix's (arXiv:2211.09800, section 4)."""


def sample_to_files(
    model_dir: Path,
    *,
    prompt: str,
    image: Path | None,
    out_dir: Path,
    params: SamplingParams | Mapping[str, Any],
    mode: str = "auto",
    prompts: Path | None = None,
) -> Iterable[str]:
    """Samples once and writes what came as `000.png`, `001.txt`, ... behind what the folder holds already.

    An image comes first, the prompt behind it.

    Args:
        params: All of them, or those that differ from the package's defaults (None stands for the default).
        mode: `image` draws the prompt; `text` writes on; `free` lets the model switch between both; `edit` draws
            the image as the prompt says it is to become; `infill` writes the prompt again, and where it has
            `[image]` an image drawn from what stands before; `auto` draws a prompt, describes an image, and edits
            an image by a prompt where the model was trained to.
        prompts: A file with a prompt a line, instead of one.

    Returns:
        A line for each file.

    Raises:
        SpecError: There is neither a prompt nor an image, or they do not fit the model.
        ArtifactError: The model cannot be loaded.
    """
    if not prompt.strip() and image is None and prompts is None:
        raise SpecError(
            "sample: give a prompt (--prompt TEXT), an image (--image FILE) or both, or a file of prompts"
        )
    if prompts is not None and (prompt.strip() or image is not None):
        raise SpecError("sample: --prompts FILE goes with neither --prompt nor --image")
    if mode not in ("auto", *MODALITIES):
        raise SpecError(f"sample: mode must be auto, {', '.join(MODALITIES)}, got {mode!r}")
    keep_freed_memory()
    sampler = Sampler(load_package(model_dir))
    if not isinstance(params, SamplingParams):
        packaged = sampler.package.config
        params = params_with(packaged.sampling, schedule=packaged.schedule, **params)
    size = sampler.package.config.image_size_px
    wanted = mode
    if mode == "auto":
        wanted = "image" if image is None else "text"
        if image is not None and prompt.strip() and trained_to_edit(sampler.package.config):
            wanted = "edit"
    if wanted == "edit" and (image is None or not prompt.strip()):
        raise SpecError(
            "sample: mode edit needs an image (--image FILE) and what to do (--prompt TEXT)"
        )
    if wanted == "infill" and image is not None:
        raise SpecError("sample: mode infill takes no image: the prompt marks where they go")
    update: dict[str, Any] = {"modalities": MODALITIES[wanted]}
    if wanted == "edit" and params.image_guidance_scale is None:
        update["image_guidance_scale"] = IMAGE_GUIDANCE
    chosen = params.model_copy(update=update)
    if prompts is not None:
        answer = infilled if wanted == "infill" else continued
        return sample_prompts(sampler, prompts, out_dir, chosen, answer=answer)
    segments: list[Segment] = [] if image is None else [read_image(image, size)]
    if prompt.strip():
        segments.append(prompt)
    written: tuple[Segment, ...]
    try:
        if wanted == "infill":
            (written,) = infilled(sampler, [prompt], [chosen])
        else:
            (sample,) = sampler.sample([sampler.request(segments, chosen)])
            written = sample.segments
    except ValueError as error:
        raise SpecError(f"sample: {error}") from error
    if not written:
        return ["the model ended at once: nothing to write"]
    out_dir.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, segment in enumerate(written, start=_first_free(out_dir)):
        if isinstance(segment, str):
            place = out_dir / f"{number:03}.txt"
            place.write_text(segment, encoding="utf-8")
            lines.append(f"{place}  {segment.strip()}")
        else:
            place = out_dir / f"{number:03}.png"
            write_png(place, segment)
            lines.append(f"{place}  {segment.shape[1]} x {segment.shape[0]} px")
    return lines


def trained_to_edit(config: PackageConfig) -> bool:
    """Whether a source of the model's mixture gave images as conditions."""
    mixtures = [entry.config for entry in config.lineage if entry.uses == "data_pipelines.mix"]
    sources = [mixture.get("sources") for mixture in mixtures]
    return any(
        isinstance(source, dict) and source.get("conditions", "none") != "none"
        for found in sources
        if isinstance(found, dict)
        for source in found.values()
    )


def read_image(path: Path, size_px: int) -> np.ndarray:
    """A picture file as the model's square: upright, cropped at the centre, resized.

    Raises:
        SpecError: It is missing or is no picture.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]) as opened:
            return to_square(opened, size_px)
    except FileNotFoundError as error:
        raise SpecError(f"{path}: there is no such image") from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise SpecError(f"{path}: cannot be read as an image: {error}") from error


def _first_free(folder: Path) -> int:
    taken = [int(place.stem) for place in folder.glob("[0-9][0-9][0-9].*") if place.stem.isdigit()]
    return max(taken, default=-1) + 1
