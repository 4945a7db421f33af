"""A document with images as one row of token ids.

The order of a pair and the dropped captions are drawn here, once a document: the mixture, the reader and the
trainer then see text like other text. So an epoch shows each document as the one before it did.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from transfusion.artifacts.tokens import TokenRow
from transfusion.config import JSON
from transfusion.sequence.draws import uniform
from transfusion.sequence.special import SpecialIds

_ORDER, _DROP = 32, 33
"""Purposes of the draws of a document; apart from those of the plan and of the reader."""


class CodedImage(NamedTuple):
    """An image of a document as codes."""

    codes: Int32[np.ndarray, " p"]
    """Row by row."""
    sha256: bytes
    """Of the source bytes."""


def coded_row(
    key: str,
    parts: Sequence[Int32[np.ndarray, " _"] | CodedImage],
    texts: Sequence[str],
    *,
    metadata: Mapping[str, JSON],
    special: SpecialIds,
    config: TokenizeImagesConfig,
) -> TokenRow:
    """The row of a document that has images.

    A pair is identified by its image, as the mixture identifies pairs of latents: the same documents are held out.

    Args:
        parts: Token ids of texts and images, in order.
        texts: The texts.
    """
    images = [part for part in parts if isinstance(part, CodedImage)]
    text = "\0".join(texts)
    content = images[0].sha256
    is_pair = len(parts) == 2 and len(images) == 1
    if not is_pair:
        digests = b"".join(image.sha256 for image in images)
        content = hashlib.sha256(text.encode() + b"\0" + digests).digest()
    ordered = _ordered(parts, text, config) if is_pair else list(parts)
    ids = [part if isinstance(part, np.ndarray) else _image(part, special) for part in ordered]
    return TokenRow(
        key=key,
        layout="t",
        segments=(np.concatenate(ids).astype(np.int32),),
        content=content,
        num_bytes=sum(len(part.encode()) for part in texts),
        metadata=metadata,
    )


def _ordered(
    parts: Sequence[Int32[np.ndarray, " _"] | CodedImage], text: str, config: TokenizeImagesConfig
) -> list[Int32[np.ndarray, " _"] | CodedImage]:
    (image,) = (part for part in parts if isinstance(part, CodedImage))
    (caption,) = (part for part in parts if not isinstance(part, CodedImage))
    words = image.sha256[:8], hashlib.sha256(text.encode()).digest()[:8]
    first, second = (np.frombuffer(word, "<u8") for word in words)
    if uniform(config.seed, _ORDER, first, second)[0] >= config.caption_first:
        return [image, caption]
    if uniform(config.seed, _DROP, first, second)[0] < config.caption_drop:
        return [image]
    return [caption, image]


def _image(image: CodedImage, special: SpecialIds) -> Int32[np.ndarray, " n"]:
    codes = special.first_code + image.codes
    return np.concatenate([[special.boi], codes, [special.eoi]]).astype(np.int32)
