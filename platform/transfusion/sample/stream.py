"""Text of tokens as they come: whole characters only, and nothing that may be the beginning of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"


class TextStream:
    """The text of one stretch of tokens.

    What is decoded begins a few tokens back, so that a token costs the same wherever it stands and a tokenizer
    that treats the first token of a text otherwise is not misled.

    Attributes:
        text: What is sure so far.
        is_stopped: A stop string came; it and what is behind it are not in the text.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._start = self._seen = 0
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def push(self, token: int) -> str:
        """What a token makes sure of."""
        self._ids.append(token)
        return self._advance(is_end=False)

    def end(self) -> str:
        """The rest, when no token comes any more."""
        return self._advance(is_end=True)

    def _advance(self, *, is_end: bool) -> str:
        if self.is_stopped:
            return ""
        before = self._decode(self._ids[self._start : self._seen])
        after = self._decode(self._ids[self._start :])
        # Bytes of a character that is not whole yet decode to replacements: they wait.
        if is_end or not after.endswith(_REPLACEMENT):
            self._held += after[len(before) :]
            self._start, self._seen = self._seen, len(self._ids)
        sure = self._cut() if self.is_stopped or self._found() else self._safe(is_end=is_end)
        self.text += sure
        return sure

    def _found(self) -> bool:
        self.is_stopped = any(stop in self._held for stop in self._stops)
        return self.is_stopped

    def _cut(self) -> str:
        ends = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        sure, self._held = self._held[: min(ends)], ""
        return sure

    def _safe(self, *, is_end: bool) -> str:
        """All but the longest ending that a stop string begins with."""
        keep = 0
        if not is_end:
            keep = max(
                (
                    size
                    for stop in self._stops
                    for size in range(1, len(stop))
                    if self._held.endswith(stop[:size])
                ),
                default=0,
            )
        at = len(self._held) - keep
        sure, self._held = self._held[:at], self._held[at:]
        return sure
