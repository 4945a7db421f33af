"""What a request comes to, and what is told of it on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from transfusion.sample.reading import ImagePart, Part

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token and what the model thought of it."""

    token: int
    logprob: float | None
    """Natural logarithm of its probability, before temperature; None where nothing is before it."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place, best first."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came behind the prompt, in order, special tokens left out."""

    parts: tuple[Part, ...]
    finish_reason: FinishReason
    prompt_length: int
    """Positions of the prompt, BOS and patches included."""
    num_tokens: int
    """Text tokens written."""
    num_read: int = 0
    """Positions that passed the transformer: of all branches, a prompt that several samples share at the first."""
    prompt_scores: Sequence[TokenScore] = ()
    """One a position of the prompt, BOS first, where they were asked for."""
    scores: Sequence[TokenScore] = ()
    """One a text token written, where they were asked for."""

    @property
    def all_scores(self) -> list[TokenScore]:
        """Of the prompt, but for BOS, which nothing is before, and of what was written."""
        return [*self.prompt_scores[1:], *self.scores]

    @property
    def images(self) -> list[Tensor]:
        """The normalised latents drawn, or codes."""
        return [part.latent for part in self.parts if isinstance(part, ImagePart)]


@dataclass(frozen=True, slots=True)
class Begun:
    """The request has joined the others."""


@dataclass(frozen=True, slots=True)
class TextWritten:
    """Whole characters, none of which will be taken back."""

    text: str
    scores: Sequence[TokenScore] = ()
    """Of the tokens since the text before it, where asked for; behind the prompt's own (but for BOS) at the first.
    The characters of the last may not be whole, and come later."""


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """What an image would be if it were clean now."""

    latent: Float[Tensor, "c h w"]
    index: int
    """Among the images of the request."""
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class ImageDrawn:
    """An image that is done."""

    part: ImagePart
    index: int


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing comes any more."""

    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """The request was given up for a reason that is not its own."""

    error: Exception


Event = Begun | TextWritten | ImagePreview | ImageDrawn | Ended | Failed
