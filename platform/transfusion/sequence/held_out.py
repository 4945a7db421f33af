"""Which documents are kept from training: a function of their content, so that everyone agrees without a list."""

import numpy as np
from jaxtyping import Bool, UInt8


def held_out(content: UInt8[np.ndarray, "d 32"], fraction: float) -> Bool[np.ndarray, " d"]:
    """Which documents are kept from training; a copy is held out with its original.

    Args:
        content: sha256 of what identifies a document: its first image, else its text.
    """
    numbers = np.ascontiguousarray(content[:, :8]).view(">u8")[:, 0]
    return numbers.astype(np.float64) < fraction * 2.0**64


def is_held_out(content: bytes, fraction: float) -> bool:
    """Whether the document with this sha256 (of its first image, else of its text) is kept from training."""
    return bool(held_out(np.frombuffer(content, np.uint8)[None], fraction)[0])
