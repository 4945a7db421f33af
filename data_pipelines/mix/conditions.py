"""What a document must fulfil to take part: conditions on what is known of it."""

import re
from typing import Literal

from pydantic import field_validator, model_validator

from transfusion.config import Config

Scalar = bool | int | float | str

BUILT_IN = ("key", "text_tokens", "images", "width", "height", "short_side", "aspect")
"""Known of every document. Sides are those of its first image in pixels, before any crop; aspect is width over
height; a document without images has none of the four."""


class Filter(Config):
    """Conditions on one column, all of which must hold."""

    column: str
    """Of the source's metadata, such as `score`, or built in: key, text_tokens, images, width, height, short_side,
    aspect. `meta.width` is the metadata's where a built-in has the same name."""

    at_least: float | None = None
    at_most: float | None = None
    """Text that reads as a number counts as that number."""

    equal: Scalar | None = None
    one_of: list[Scalar] | None = None
    none_of: list[Scalar] | None = None

    matches: str | None = None
    """A regular expression (RE2) that is found somewhere in the value as text; `^` and `$` hold it to the ends."""

    missing: Literal["drop", "keep"] = "drop"
    """What becomes of a document without a value, be it null or not a number where one is asked for."""

    @field_validator("matches")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _has_a_condition(self) -> "Filter":
        conditions = (
            self.at_least, self.at_most, self.equal, self.one_of, self.none_of, self.matches,
        )  # fmt: skip
        if all(condition is None for condition in conditions):
            raise ValueError(
                "a filter needs a condition: at_least, at_most, equal, one_of, none_of or matches; "
                "to keep what has any value, write matches: ''"
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(
                f"at_least {self.at_least} is more than at_most {self.at_most}: nothing would be left"
            )
        return self

    @property
    def reason(self) -> str:
        """What its documents are counted under."""
        return f"filter.{self.column}"
