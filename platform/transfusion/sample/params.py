"""What a caller may say about one request."""

from typing import Any, Literal

from pydantic import Field, field_validator

from transfusion.config import validate
from transfusion.diffusion.config import ScheduleName, check_solver
from transfusion.errors import SpecError
from transfusion.package.config import SamplingDefaults

Modality = Literal["text", "image"]

MAX_SEED = 2**63 - 1
MAX_STOPS = 16


class SamplingParams(SamplingDefaults):
    """How one request is answered."""

    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of everything drawn for this request: it gets the same answer alone or among others."""

    max_tokens: int = Field(64, ge=0)
    """Text tokens at most, over all stretches of text; an image counts none."""

    max_images: int = Field(1, ge=0)
    """Images at most."""

    modalities: tuple[Modality, ...] = ("text", "image")
    """`image` alone draws one image of the prompt at once; `text` alone never draws; both let the model decide."""

    image_guidance_scale: float | None = Field(None, ge=0, le=20)
    """Of an edit, which is images, a prompt, and an image drawn at once: 1 keeps to the images without emphasis,
    more keeps closer to them, and `guidance_scale` is of the prompt alone. None guides by both together."""

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Images are guided where t / T is within; elsewhere the prompt alone decides, at half the cost.
    Source: Kynkaanniemi et al. 2024, arXiv:2404.07724."""

    stop: tuple[str, ...] = ()
    """Text ends before any of these."""

    ignore_eos: bool = False
    """Text goes on to `max_tokens` whatever the model thinks: for measurements."""

    logprobs: int | None = Field(None, ge=0, le=20)
    """So many likeliest tokens are told beside each that is written."""

    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    """The same of each position of the prompt."""

    preview_every: int = Field(0, ge=0)
    """Steps between previews of an image that is drawn; 0 for none."""

    @field_validator("guidance_interval")
    @classmethod
    def _ordered(cls, interval: tuple[float, float]) -> tuple[float, float]:
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval must be within 0 to 1, low first, got {interval}")
        return interval

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop) or len(stop) > MAX_STOPS:
            raise ValueError(
                f"stop must be at most {MAX_STOPS} texts, none of them empty, got {stop}"
            )
        return stop

    @field_validator("modalities")
    @classmethod
    def _some(cls, modalities: tuple[Modality, ...]) -> tuple[Modality, ...]:
        if not modalities or len(set(modalities)) != len(modalities):
            raise ValueError(f"modalities must name text, image or both once, got {modalities}")
        return modalities

    @property
    def image_at_once(self) -> bool:
        """Whether the prompt is followed by an image whatever the model would do."""
        return self.modalities == ("image",)


def params_with(
    defaults: SamplingDefaults, *, schedule: ScheduleName = "cosine", **chosen: Any
) -> SamplingParams:
    """A package's defaults with what the caller chose; None stands for no choice.

    Args:
        schedule: The package's, which not every solver is made for.

    Raises:
        SpecError: A value is out of range, all of them are named; or the solver does not fit the schedule.
    """
    values = defaults.resolved() | {k: v for k, v in chosen.items() if v is not None}
    params, faults = validate(SamplingParams, values, where="")
    if params is None:
        raise SpecError([fault.removeprefix(": ") for fault in faults])
    try:
        check_solver(params.solver, schedule=schedule)
    except ValueError as error:
        raise SpecError(str(error)) from error
    return params
