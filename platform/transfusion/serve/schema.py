"""Requests as OpenAI's clients send them, and our extensions beside them or inside `extra_body`.

Parameters of OpenAI's that mean nothing here are taken where they ask for nothing, and refused where they do: none
is silently ignored, but for `user`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from transfusion.sample.params import MAX_SEED, SamplingParams

MAX_PARTS = 100
"""Messages of a chat, and parts of a message."""


def _flatten(values: Any) -> Any:
    """`extra_body` nested, as people write it with curl; OpenAI's client merges it itself."""
    if not isinstance(values, Mapping):
        return values
    nested = values.get("extra_body")
    if nested is None:
        return {key: value for key, value in values.items() if key != "extra_body"}
    if not isinstance(nested, Mapping):
        raise ValueError("extra_body: must be an object")  # noqa: TRY004  pydantic reads ValueErrors
    return {**nested, **{key: value for key, value in values.items() if key != "extra_body"}}


def _tell_extra_body(schema: dict[str, Any]) -> None:
    schema["properties"]["extra_body"] = {
        "type": ["object", "null"],
        "description": "Any of these parameters once more, as OpenAI's client names extensions",
    }


_NOTHING: tuple[Any, ...] = (None, False, 0, "", "auto", {}, [])


def _nothing(value: Any) -> None:
    """A parameter that is not supported, given a value that asks for nothing."""
    if value is True or value not in _NOTHING:
        raise ValueError("is not supported by this server")


Unsupported = Annotated[
    None, BeforeValidator(_nothing), WithJsonSchema({"enum": [*_NOTHING], "deprecated": True})
]


def _streamed(value: int | None, info: Any) -> int | None:
    """What comes on the way only: whoever asks for it must listen."""
    if value and not info.data.get("stream", True):
        raise ValueError("comes in a stream only: send stream: true with it, or leave it out")
    return value


class SampleRequest(BaseModel):
    """What all that ask for samples have in common."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_tell_extra_body
    )

    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    user: str | None = None
    """Taken, and neither kept nor logged."""
    stream: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _extensions(cls, values: Any) -> Any:
        return _flatten(values)

    def sampling(self) -> dict[str, Any]:
        """Those of our sampling parameters that this request may name; None where it does not."""
        return {
            name: getattr(self, name)
            for name in SamplingParams.model_fields
            if name in type(self).model_fields
        }


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: Unsupported = None


class WritingRequest(SampleRequest):
    """How text is written."""

    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Unsupported = None
    presence_penalty: Unsupported = None
    logit_bias: Unsupported = None

    @field_validator("stop")
    @classmethod
    def _few(cls, stop: str | list[str] | None) -> list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop
        if stops is not None and len(stops) > 4:
            raise ValueError("must be at most 4 texts")
        return stops


class DrawingRequest(SampleRequest):
    """How pictures are drawn."""

    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=0, le=20)
    guidance_interval: list[float] | None = Field(None, min_length=2, max_length=2)
    """Guidance where t / T is within. A list, for JSON knows no tuples."""
    solver: Literal["ddpm", "ddim", "dpm++", "unipc"] | None = None
    negative_prompt: str | None = None


class ImageRequest(DrawingRequest):
    """`POST /v1/images/generations`."""

    prompt: str
    size: str | None = Field(None, pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png"] | None = None
    partial_images: Annotated[int | None, AfterValidator(_streamed)] = Field(None, ge=0, le=3)
    background: Unsupported = None
    moderation: Unsupported = None
    output_compression: Unsupported = None
    quality: Unsupported = None
    style: Unsupported = None


class CompletionRequest(WritingRequest):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    """Texts, or token ids."""
    echo: bool | None = None
    best_of: Literal[1] | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: Unsupported = None

    @field_validator("prompt")
    @classmethod
    def _some(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            texts = not all(isinstance(one, int) for one in prompt)
            if not prompt or (texts and len(prompt) > 20):
                raise ValueError("must be 1 to 20 texts")
        return prompt


class ImageUrl(BaseModel):
    """A picture inside the request, `data:image/png;base64,...`, or at an address on a host that is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True)
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ContentPart(BaseModel):
    """A piece of a message: text or a picture, in the order in which they are read."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ContentPart":
        if (self.text is None) == (self.type == "text"):
            raise ValueError(f"a part of type {self.type!r} must hold {self.type!r}")
        if (self.image_url is None) == (self.type == "image_url"):
            raise ValueError(
                f"a part of type {self.type!r} must hold {self.type!r} and nothing else"
            )
        return self


class ChatMessage(BaseModel):
    """What was said; the model knows documents and no roles, and is given all of it in order."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]


class ChatRequest(WritingRequest, DrawingRequest):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_PARTS)
    modalities: list[Literal["text", "image"]] | None = None
    """`text` unless told otherwise; both let the model decide, `image` alone draws."""
    max_completion_tokens: int | None = Field(None, ge=0)
    max_images: int | None = Field(None, ge=0)
    image_guidance_scale: float | None = Field(None, ge=0, le=20)
    previews: Annotated[int | None, AfterValidator(_streamed)] = Field(None, ge=0, le=10)
    """Of each picture, on its way; the answer must stream."""
    logprobs: Unsupported = None
    top_logprobs: Unsupported = None
    response_format: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None


class TokenizeRequest(BaseModel):
    """`POST /tokenize`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    """Whether BOS, which every prompt gets here, stands before it."""


class DetokenizeRequest(BaseModel):
    """`POST /detokenize`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    tokens: list[int]
    model: str | None = None
