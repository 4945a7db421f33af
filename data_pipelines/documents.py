"""Documents: what every source yields; nothing else enters the pipeline.

A document is an ordered list of segments. Plain text is one segment, a caption pair two, a web page many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transfusion.config import JSON


@dataclass(frozen=True, slots=True)
class Text:
    """Text that encodes to UTF-8: sources reject lone surrogates and NUL."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image file as it was found: decoding happens where the pixels are needed."""

    data: bytes
    name: str
    """What to call it in a message, such as a path relative to the source's folder."""


Segment = Text | Image


@dataclass(frozen=True, slots=True)
class Document:
    """One input row that a source could read."""

    key: str
    """Unique within the source, and the same for the same row in every run."""

    segments: tuple[Segment, ...]

    metadata: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """One input row that a source could not read, so that every row is accounted for."""

    key: str
    """The row's key, or where it was found, such as `train.jsonl:17`."""

    reason: str
    """A short fixed word to count by, such as `bad_json`."""

    detail: str
    """What was found, for a person."""
