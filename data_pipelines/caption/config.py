"""Options of captioning."""

from pydantic import Field, field_validator

from data_pipelines.limits import DecodeLimits
from data_pipelines.sampling import SamplesConfig
from transfusion.sample.params import MAX_STOPS


class CaptionConfig(SamplesConfig):
    """Captions of images, by a model that was trained on some."""

    prompt: str = ""
    """Text behind the image, from which the caption goes on; it is no part of the caption."""

    max_tokens: int = Field(default=64, ge=1)
    """A caption is cut there."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 always takes the likeliest token; more gives captions that vary as those of the training data do."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Tokens are drawn from the likeliest that hold this much probability."""

    top_k: int = Field(default=0, ge=0)
    """Tokens are drawn from this many likeliest; 0 for all."""

    stop: tuple[str, ...] = ()
    """A caption ends before any of these."""

    @field_validator("stop")
    @classmethod
    def _stops_can_be_found(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if not all(stop) or len(stop) > MAX_STOPS:
            raise ValueError(f"must be at most {MAX_STOPS} texts, none of them empty, got {stop}")
        return stop

    limits: DecodeLimits = DecodeLimits()

    jpeg_draft: bool = False
    """As in `data_pipelines.encode_images`."""
