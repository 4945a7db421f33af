"""Patterns of paths: `*`, `?`, `[a-z]`, `**` for any number of folders, `{a,b}` and `{000..123}` as in a shell.

A pattern is one regular expression and a few bounds, so that a hundred thousand names are matched in a second
whatever a range holds.
"""

import re
from collections.abc import Callable

from transfusion.errors import ArtifactError

_MAGIC = re.compile(r"[*?\[{]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(path: str) -> bool:
    """Whether the path holds a character that is special in a pattern."""
    return _MAGIC.search(path) is not None


def split_pattern(path: str) -> tuple[str, str]:
    """The folder above the first special part, and the rest: `a/b*/c` is `a` and `b*/c`."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if is_pattern(part))
    return "/".join(parts[:first]), "/".join(parts[first:])


def literal_start(pattern: str) -> str:
    """What every name that fits begins with."""
    found = _MAGIC.search(pattern)
    return pattern[: found.start()] if found else pattern


def matcher(pattern: str) -> Callable[[str], bool]:
    """Says of a relative path whether it fits.

    Raises:
        ArtifactError: A bracket or brace is not closed, or braces stand in one another.
    """
    bounds: list[tuple[int, int]] = []
    parts = pattern.split("/")
    steps = []
    for index, part in enumerate(parts):
        if part == "**":
            steps.append("(?:[^/]+/)*" if index < len(parts) - 1 else ".*")
        else:
            steps.append(_part(part, pattern, bounds) + ("/" if index < len(parts) - 1 else ""))
    expression = re.compile("".join(steps), re.DOTALL)

    def fits(path: str) -> bool:
        found = expression.fullmatch(path)
        return found is not None and all(
            low <= int(number) <= high
            for number, (low, high) in zip(found.groups(), bounds, strict=True)
        )

    return fits


def _part(part: str, pattern: str, bounds: list[tuple[int, int]]) -> str:
    """The regular expression of what stands between two slashes; a range is a group, with its bounds."""
    steps, at = [], 0
    while at < len(part):
        letter = part[at]
        if letter == "*":
            steps.append("[^/]*")
        elif letter == "?":
            steps.append("[^/]")
        elif letter in "[{":
            end = part.find("]", at + 2) if letter == "[" else part.find("}", at)
            if end < 0:
                raise ArtifactError(
                    f"{pattern}: {letter!r} is not closed; a plain one reads [{letter}]"
                )
            inner = part[at + 1 : end]
            steps.append(_class(inner) if letter == "[" else _braces(inner, pattern, bounds))
            at = end
        else:
            steps.append(re.escape(letter))
        at += 1
    return "".join(steps)


def _class(inner: str) -> str:
    negated = inner.startswith("!")
    letters = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if negated else inner)
    return f"[^/{letters}]" if negated else f"[{letters}]"


def _braces(inner: str, pattern: str, bounds: list[tuple[int, int]]) -> str:
    if is_pattern(inner):
        raise ArtifactError(f"{pattern}: braces hold plain names parted by commas, or 000..123")
    span = _RANGE.fullmatch(inner)
    if span is None:
        return "(?:" + "|".join(re.escape(name) for name in inner.split(",")) + ")"
    low, high = span.groups()
    bounds.append((int(low), int(high)))
    padded = low.startswith("0") and len(low) > 1
    return f"(\\d{{{len(high)}}})" if padded else "(0|[1-9]\\d*)"
