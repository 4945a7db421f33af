"""Configuration of the evaluate stage."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from transfusion.package.config import ImageSampling, model_faults
from transfusion.stage import Upstream

TaskName = Literal[
    "single_object", "two_objects", "counting", "colors", "position", "color_attribution"
]
"""The tasks of `evaluate.shapes.prompts.TASKS`."""


class EvaluateConfig(ImageSampling):
    """What is drawn, described and read, and how."""

    seed: int = Field(ge=0, lt=2**63)
    """Of prompts and noise."""

    weights: Literal["ema", "raw"] = "ema"
    """Which of the package's weights are judged."""

    tasks: tuple[TaskName, ...] = (
        "single_object",
        "two_objects",
        "counting",
        "colors",
        "position",
        "color_attribution",
    )
    """GenEval's tasks to draw and score, where the images are of a drawn world; `textures` has the first alone."""

    num_single_object: int = Field(128, ge=1)
    """Prompts of the task `single_object`."""

    class_prompt: str | None = Field(None, pattern=r"\{label\}")
    """How a class-conditional model of drawn shapes is asked for a single object: `{label}` is "red circle"."""

    num_per_task: int = Field(32, ge=1)
    """Prompts of every other task."""

    num_caption_prompts: int = Field(64, ge=0)
    """Held-out captions that are drawn, where the images are real ones and no detector can judge them."""

    num_captions: int = Field(128, ge=0)
    """Held-out images that are described."""

    max_caption_tokens: int = Field(48, ge=1)
    """A caption is cut there."""

    num_edits: int = Field(256, ge=0)
    """Held-out edits that are drawn, where a source of the mixture has conditions."""

    image_guidance_scale: float = Field(1.5, ge=0, le=20)
    """Of edits: how close they keep to the image that is edited."""

    num_paired: int = Field(0, ge=0)
    """Held-out images whose losses are measured at fixed timesteps with fixed noise, to compare runs by."""

    num_nearest: int = Field(0, ge=0)
    """Held-out images, and as many edits, by which the distance of each drawing to the nearest training image is
    judged; 0 looks for no nearest images."""

    nearest_max_images: int = Field(1_000_000, ge=1)
    """Training images that are looked at; where there are more, so many of them, evenly spaced over all shards."""

    num_text_documents: int = Field(64, ge=0)
    """Held-out documents read for bits per byte; the first tokens of each."""

    max_document_tokens: int = Field(2048, ge=2)
    """Of each of them."""

    num_pixels: int = Field(256, ge=0)
    """Images through the autoencoder and back, for its ceiling."""

    num_shown: int = Field(16, ge=0)
    """Reconstructions and captions kept as pictures."""

    batch_size: int = Field(32, ge=1)
    """Prompts at once; another size flips last bits, so it is part of what is made."""


def faults(config: EvaluateConfig, inputs: Mapping[str, Upstream]) -> list[str]:
    """Whether the solver is made for the schedule of the job's model, and pixels are of the size that it draws."""
    found = model_faults(config.solver, inputs["model"])
    sizes = map(_size_px, inputs["mixture"].inputs.values())
    made = {size for size in sizes if size is not None}
    compared = _size_px(inputs["pixels"]) if "pixels" in inputs else None
    if made and compared is not None and compared not in made:
        found.append(
            f": pixels are of {compared} px and what the model learns of {', '.join(map(str, sorted(made)))}: "
            "what the autoencoder allows would be told of another size; make image_size_px the same"
        )
    return found


def _size_px(stage: Upstream) -> int | None:
    return getattr(stage.config, "image_size_px", None)
