"""Requests, and a request under way: what it may still do, and what a token changes."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from transfusion.package.format import PackageConfig
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import Part, TextPart, length_of

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, opened by BOS, and how to go on from it."""

    prompt: tuple[Part, ...]
    params: SamplingParams


def check_request(request: Request, config: PackageConfig) -> None:
    """Refuses a prompt that the model's context cannot hold.

    Raises:
        ValueError: With the lengths.
    """
    params = request.params
    used = length_of(request.prompt, config) + 1
    image = config.num_patches + 2 if params.image_at_once else 1
    if used + image > config.sequence_length:
        raise ValueError(
            f"the prompt takes {used} positions and what follows at least {image}: "
            f"must be at most {config.sequence_length} together"
        )
    if params.image_guidance_scale is not None:
        if config.num_codes or not params.image_at_once:
            raise ValueError(
                "image_guidance_scale is of an image drawn at once by a model of latents: leave it out"
            )
        kinds = [isinstance(part, TextPart) for part in request.prompt]
        # Text before an image would be in what the image's patches know, where the prompt is to be unknown.
        if not kinds or kinds[0] or kinds != sorted(kinds):
            raise ValueError("image_guidance_scale: a prompt to edit by must be images, then text")
    if params.image_at_once and not params.max_images:
        raise ValueError("max_images must be at least 1 where modalities is only image, got 0")


@dataclass(slots=True)
class Row:
    """A request under way."""

    request: Request
    length: int
    """Positions that its cache holds."""
    generator: torch.Generator
    state: Literal["text", "image", "done"] = "text"
    finish_reason: FinishReason = "stop"
    parts: list[Part] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_images: int = 0

    def conditions_end(self, config: PackageConfig) -> int:
        """One past the last position of the images that the prompt begins with, BOS being the first."""
        images = sum(not isinstance(part, TextPart) for part in self.request.prompt)
        return 1 + images * (config.num_patches + 2)

    def end(self, reason: FinishReason) -> None:
        """Nothing comes any more."""
        self.close_text()
        self.state, self.finish_reason = "done", reason

    def close_text(self) -> None:
        """What was written since the last image becomes a part."""
        if self.pending:
            self.parts.append(TextPart(tuple(self.pending)))
            self.pending = []

    def may_draw(self, config: PackageConfig) -> bool:
        """Whether BOI may come next."""
        params = self.request.params
        return (
            "image" in params.modalities
            and self.num_images < params.max_images
            and self.length + config.num_patches + 2 <= config.sequence_length
        )

    def take(self, token: int, config: PackageConfig) -> bool:
        """Goes on by a new token; returns whether the token is to be read."""
        params = self.request.params
        if token == config.special.eos:
            self.end("stop")
        elif token == config.special.boi:
            self.close_text()
            self.state = "image"
        elif self.num_tokens == params.max_tokens:
            self.end("length")
        else:
            self.pending.append(token)
            self.num_tokens += 1
            full = self.length + 1 >= config.sequence_length
            if full or (self.num_tokens == params.max_tokens and not self.may_draw(config)):
                self.end("length")
        return self.state == "text"


def room_for(params: SamplingParams, length: int, config: PackageConfig) -> int:
    """Positions that a request can come to take."""
    image = config.num_patches + 2
    if params.image_at_once:
        return length + image
    images = params.max_images * image if "image" in params.modalities else 0
    return min(length + params.max_tokens + images, config.sequence_length)
