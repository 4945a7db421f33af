"""Ids of the special tokens: placed after the pieces of the tokenizer, so that no text can yield them.

Where images are tokens, the codes of an autoencoder's codebook follow them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """Padding, begin and end of a document, begin and end of an image."""

    pad: int
    bos: int
    eos: int
    boi: int
    eoi: int
    num_codes: int = 0
    """Ids behind the special ones that stand for patches of images."""

    @classmethod
    def after(cls, num_pieces: int, *, num_codes: int = 0) -> "SpecialIds":
        """The five ids that follow a tokenizer of `num_pieces` pieces."""
        return cls(
            pad=num_pieces,
            bos=num_pieces + 1,
            eos=num_pieces + 2,
            boi=num_pieces + 3,
            eoi=num_pieces + 4,
            num_codes=num_codes,
        )

    @property
    def first_code(self) -> int:
        """Id of code 0, where there are codes."""
        return max(self.pad, self.bos, self.eos, self.boi, self.eoi) + 1

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the pieces of the tokenizer and the codes included."""
        return self.first_code + self.num_codes
