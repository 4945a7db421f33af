"""Ids of the special tokens: placed after the pieces of the tokenizer, so that no text can yield them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialIds:
    """Padding, begin and end of a document, begin and end of an image."""

    pad: int
    bos: int
    eos: int
    boi: int
    eoi: int

    @classmethod
    def after(cls, num_pieces: int) -> "SpecialIds":
        """The five ids that follow a tokenizer of `num_pieces` pieces."""
        return cls(
            pad=num_pieces,
            bos=num_pieces + 1,
            eos=num_pieces + 2,
            boi=num_pieces + 3,
            eoi=num_pieces + 4,
        )

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the pieces of the tokenizer included."""
        return max(self.pad, self.bos, self.eos, self.boi, self.eoi) + 1
