"""Requests, and what one of them is at: its text, its images, what may come next."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from transfusion.model.cache import PagedCache
from transfusion.package.format import PackageConfig
from transfusion.sample.batch import Passed, StepBatch
from transfusion.sample.drawing import Branch, Branches, CodeDrawing, LatentDrawing
from transfusion.sample.events import (
    Event,
    FinishReason,
    ImageDrawn,
    Result,
    TextWritten,
    TokenScore,
)
from transfusion.sample.pages import PagedSequence
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, Part, TextPart, length_of, read
from transfusion.sample.stream import Decode, TextStream

Drawing = LatentDrawing | CodeDrawing


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, opened by BOS, and how to go on from it."""

    prompt: tuple[Part, ...]
    params: SamplingParams
    negative_prompt: tuple[int, ...] = ()
    """Ids that the null branch of guidance sees before BOI; nothing but BOI where there are none."""


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
    if len(request.negative_prompt) + 3 + config.num_patches > config.sequence_length:
        raise ValueError(
            f"negative_prompt takes {len(request.negative_prompt)} positions beside an image's "
            f"{config.num_patches + 3}: must be at most {config.sequence_length} together"
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


def conditions_end(request: Request, config: PackageConfig) -> int:
    """One past the last position of the images that the prompt begins with, BOS being the first."""
    images = sum(not isinstance(part, TextPart) for part in request.prompt)
    return 1 + images * (config.num_patches + 2)


def room_for(request: Request, config: PackageConfig) -> int:
    """Positions that a request can come to take."""
    params, image = request.params, config.num_patches + 2
    length = 1 + length_of(request.prompt, config)
    if params.image_at_once:
        return length + image
    images = params.max_images * image if "image" in params.modalities else 0
    return min(length + params.max_tokens + images, config.sequence_length)


def branches_for(request: Request, config: PackageConfig) -> tuple[int, ...]:
    """Positions that the other branches of guidance can come to take: of images alone, of nothing."""
    params = request.params
    if "image" not in params.modalities or not params.max_images:
        return ()
    if params.guidance_scale == 1 and params.image_guidance_scale in (None, 1):
        return ()
    image = 1 + config.num_patches
    # One of codes begins with BOS always, one of latents with a negative prompt alone.
    opening = 1 + len(request.negative_prompt)
    nothing = image + (opening if config.num_codes or request.negative_prompt else 0)
    if params.image_guidance_scale is None:
        return (nothing,)
    return (conditions_end(request, config) + image, nothing)


@dataclass(slots=True, eq=False)
class Row:
    """A request under way."""

    request: Request
    config: PackageConfig
    generator: torch.Generator
    sequence: PagedSequence
    others: tuple[PagedSequence, ...]
    """Of the branches of guidance beside the conditional one."""
    tell: Callable[[Event], None]
    decode: Decode | None
    device: torch.device
    state: Literal["prompt", "fork", "text", "image", "clean", "done"] = "prompt"
    """`fork`: the prompt is read for others too, and not by this row."""
    finish_reason: FinishReason = "stop"
    parts: list[Part] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    stream: TextStream | None = None
    drawing: Drawing | None = None
    next_token: int = 0
    """Sampled and not read yet."""
    last_row: int | None = None
    """Of the step under way, behind which the next token is sampled."""
    hidden: Tensor | None = None
    """Behind which the next token is sampled."""
    num_tokens: int = 0
    num_images: int = 0
    num_read: int = 0
    """Positions that passed the transformer for this request alone."""
    prompt_scores: list[TokenScore] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    num_scores_told: int = 0

    @property
    def params(self) -> SamplingParams:
        """How the request is answered."""
        return self.request.params

    @property
    def result(self) -> Result:
        """What came of it."""
        return Result(
            parts=tuple(self.parts),
            finish_reason=self.finish_reason,
            prompt_length=1 + length_of(self.request.prompt, self.config),
            num_tokens=self.num_tokens,
            num_read=self.num_read,
            prompt_scores=tuple(self.prompt_scores),
            scores=tuple(self.scores),
        )

    def end(self, reason: FinishReason) -> None:
        """Nothing comes any more."""
        self.close_text()
        self.state, self.finish_reason, self.hidden = "done", reason, None

    def close(self) -> None:
        """Gives its pages back."""
        for sequence in (self.sequence, *self.others):
            sequence.close()

    def plan(self, batch: StepBatch, cache: PagedCache) -> None:
        """What is read of this request in the next step."""
        config, special = self.config, self.config.special
        self.last_row = None
        if self.request.negative_prompt and self.others and not self.others[-1].length:
            opening = TextPart((special.bos, *self.request.negative_prompt))
            read(batch, self.others[-1], [opening], config=config)
        if self.state == "prompt":
            prompt = (TextPart((special.bos,)), *self.request.prompt)
            self.last_row = read(batch, self.sequence, prompt, config=config)
        elif self.state == "text":
            token = TextPart((self.next_token,))
            self.last_row = read(batch, self.sequence, [token], config=config)
        elif self.state == "clean":
            part = self.parts[-1]
            if config.num_codes and isinstance(part, ImagePart):
                # All codes but the last were read as they were drawn.
                last = special.first_code + int(part.latent.flatten()[-1])
                part = TextPart((last, special.eoi))
            self.last_row = read(batch, self.sequence, [part], config=config, is_opened=True)
        elif self.drawing is not None:
            if (
                isinstance(self.drawing, LatentDrawing)
                and len(self.others) > 1
                and not self.drawing.step
            ):
                # The branch that knows the images alone begins as the whole prompt does.
                slots = slice(0, self.others[0].length)
                cache.copy(self.sequence.slots[slots], self.others[0].slots[slots])
            self.drawing.plan(batch)

    def plan_guidance(self, batch: StepBatch) -> None:
        """What is read in the other branches of guidance, behind all conditional ones: these are of one length."""
        if self.drawing is not None and self.state == "image":
            self.drawing.plan_guidance(batch)

    def begin_text(self, passed: Passed | None) -> bool:
        """Whether a token comes next; otherwise an image is begun where the prompt asks for one at once."""
        if self.last_row is not None and passed is not None:
            self.hidden = passed.hidden[self.last_row]
        if self.hidden is None:
            return False
        if self.params.image_at_once:
            self.begin_image()
            return False
        if self.sequence.length + 1 > self.config.sequence_length:
            self.end("length")
            return False
        return True

    def close_text(self) -> None:
        """What was written since the last image becomes a part."""
        text = None
        if self.stream is not None:
            self._say(self.stream.end())
            text = self.stream.text if self.stream.is_stopped else None
            self.stream = None
        if self.pending:
            self.parts.append(TextPart(tuple(self.pending), text))
            self.pending = []

    def may_draw(self) -> bool:
        """Whether BOI may come next."""
        return (
            "image" in self.params.modalities
            and self.num_images < self.params.max_images
            and self.sequence.length + self.config.num_patches + 2 <= self.config.sequence_length
        )

    def take(self, token: int, score: TokenScore | None = None) -> None:
        """Goes on by a new token, which is scored where that was asked for."""
        params, special = self.params, self.config.special
        self.hidden = None
        if token == special.eos and not params.ignore_eos:
            self.end("stop")
        elif token == special.boi:
            self.begin_image()
        elif self.num_tokens == params.max_tokens:
            self.end("length")
        else:
            self._write(token, score)

    def _write(self, token: int, score: TokenScore | None) -> None:
        params = self.params
        self.pending.append(token)
        if score is not None:
            self.scores.append(score)
        self.num_tokens += 1
        self.state, self.next_token = "text", token
        if self.decode is not None:
            if self.stream is None:
                self.stream = TextStream(self.decode, params.stop)
            self._say(self.stream.push(token))
            if self.stream.is_stopped:
                self.end("stop")
                return
        full = self.sequence.length + 1 >= self.config.sequence_length
        if full or (self.num_tokens == params.max_tokens and not self.may_draw()):
            self.end("length")

    def _say(self, text: str) -> None:
        if text:
            scores = (*self.prompt_scores[1:], *self.scores)[self.num_scores_told :]
            self.num_scores_told += len(scores)
            self.tell(TextWritten(text, scores))

    def begin_image(self) -> None:
        """Draws at the place that the sequence has come to."""
        self.close_text()
        self.state, self.hidden = "image", None
        drawing = CodeDrawing if self.config.num_codes else LatentDrawing
        self.drawing = drawing(
            branches=self._branches(),
            params=self.params,
            config=self.config,
            generator=self.generator,
            device=self.device,
        )

    def _branches(self) -> Branches:
        full = Branch(self.sequence)
        if not self.others:
            return Branches(full)
        *middle, nothing = self.others
        if not self.request.negative_prompt:
            nothing.length = 0
            nothing.offset = 0 if self.config.num_codes else self.sequence.length
        else:
            nothing.length = 1 + len(self.request.negative_prompt)
        for sequence in middle:
            sequence.length = conditions_end(self.request, self.config)
            sequence.offset = self.sequence.length - sequence.length
        of_image = Branch(middle[0]) if middle else None
        return Branches(full, of_image, Branch(nothing))

    def end_image(self) -> None:
        """The drawing is done: it is read clean where text may follow."""
        drawing = self.drawing
        assert drawing is not None
        if isinstance(drawing, CodeDrawing):
            side = (self.config.latent_height, self.config.latent_width)
            latent = torch.tensor(drawing.codes, device=self.device).view(1, *side)
        else:
            latent = drawing.latent
        part = ImagePart(latent)
        self.parts.append(part)
        self.num_images += 1
        self.drawing = None
        self.tell(ImageDrawn(part, index=self.num_images - 1))
        if self.params.image_at_once:
            self.end("stop")
        else:
            self.state = "clean"
