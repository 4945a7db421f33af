"""What the model thought of tokens, in the lists of OpenAI's completions."""

from collections.abc import Sequence
from typing import Any

from transfusion.sample.events import TokenScore
from transfusion.sample.stream import Decode


class Logprobs:
    """Parallel lists over the tokens of one sample, whole or a piece at a time.

    Attributes:
        count: Tokens so far.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._at = self.count = 0

    def of(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """The lists over the tokens that come next."""
        tokens = [self._spelled([score.token]) for score in scores]
        offsets = []
        for token in tokens:
            offsets.append(self._at)
            self._at += len(token)
        self.count += len(tokens)
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [
                {self._spelled([token]): logprob for token, logprob in reversed(score.top)}
                for score in scores
            ],
            "text_offset": offsets,
        }

    def _spelled(self, ids: Sequence[int]) -> str:
        """A token as a string that tells it from every other: ids that spell nothing are named."""
        return self._decode(ids) or f"<token {ids[0]}>"
