"""What a caller may say about one request."""

from typing import Any, Literal

from pydantic import Field, field_validator

from transfusion.config import validate
from transfusion.errors import SpecError
from transfusion.package.config import SamplingDefaults

Modality = Literal["text", "image"]

MAX_SEED = 2**63 - 1


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


def params_with(defaults: SamplingDefaults, **chosen: Any) -> SamplingParams:
    """A package's defaults with what the caller chose; None stands for no choice.

    Raises:
        SpecError: A value is out of range; all of them are named.
    """
    values = defaults.resolved() | {k: v for k, v in chosen.items() if v is not None}
    params, faults = validate(SamplingParams, values, where="")
    if params is None:
        raise SpecError(faults)
    return params
