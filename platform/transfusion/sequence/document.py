"""Documents after tokenization: text and images in order. Every source yields these; nothing else enters.

An image is a reference of any type: a row to be read while planning, an `ImageInput` when a batch is assembled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from jaxtyping import Float32, Int32

Sight = Literal["all", "nothing", "images", "text"]
"""What an image sees of what stands before it in its document: less than all is a null of guidance."""

R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Token ids without special tokens."""

    ids: Int32[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class ImageSpan(Generic[R]):
    """An image of `height_patches` x `width_patches` patches, and where its latent is to be found."""

    height_patches: int
    width_patches: int
    reference: R

    copied: bool = False
    """Something behind it in the document is to see it clean: it stands in its place without noise and without a
    loss, and its noised twin behind the document. For layouts with `clean_copies`; never of a condition."""

    @property
    def num_patches(self) -> int:
        """How many positions the patches take, BOI and EOI not counted."""
        return self.height_patches * self.width_patches


@dataclass(frozen=True, slots=True)
class Document(Generic[R]):
    """Spans in order, between BOS and EOS.

    A text-only document that is cut at the end of a sequence becomes pieces: the first does not close,
    the last does not open.
    """

    spans: tuple[TextSpan | ImageSpan[R], ...]

    opens: bool = True
    """BOS stands before the first span."""

    closes: bool = True
    """EOS stands after the last span."""

    def with_images(self, resolve: Callable[[R], S]) -> "Document[S]":
        """The same document with every image reference replaced by what `resolve` makes of it."""
        spans = tuple(
            span
            if isinstance(span, TextSpan)
            else ImageSpan(
                span.height_patches,
                span.width_patches,
                resolve(span.reference),
                copied=span.copied,
            )
            for span in self.spans
        )
        return Document(spans, opens=self.opens, closes=self.closes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """An image as a batch needs it: drawn by the caller, so that it depends on the document alone."""

    latent: Float32[np.ndarray, "c h w"]
    """Clean and normalised to unit variance."""

    noise: Float32[np.ndarray, "c h w"]

    timestep: int

    sees: Sight = "all"

    condition: bool = False
    """Given to the model without noise, and without a loss; its noise and timestep are of no meaning. (Of an image
    that is copied noise and timestep are its twin's.)"""
