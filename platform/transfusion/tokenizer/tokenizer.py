"""A sentencepiece model as the platform uses it.

Text is only ever text: what spells a special token (`<s>`, `<unk>`, `<BOI>`, `<0x41>`) is encoded as the
characters it is made of. The special ids follow the pieces, so no text can yield them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Int32

from transfusion.errors import ArtifactError

MODEL = "tokenizer.model"
"""The file of a `tokenizer` artifact, and its name in a model package."""


class Tokenizer:
    """Encodes and decodes; immutable, and pickles to its model's bytes."""

    def __init__(self, model: bytes, *, where: str = "tokenizer") -> None:
        """Loads a serialised model.

        Raises:
            ArtifactError: The bytes are no sentencepiece model.
        """
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            size = self._processor.get_piece_size()
        except (RuntimeError, TypeError) as error:
            raise ArtifactError(f"{where}: is not a sentencepiece model: {error}") from error
        if size < 1:
            raise ArtifactError(f"{where}: is not a sentencepiece model: it has no pieces")

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return (Tokenizer, (self.model,))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Loads a `.model` file.

        Raises:
            ArtifactError: There is no such file, or it is no sentencepiece model.
        """
        if not path.is_file():
            raise ArtifactError(f"{path}: there is no such file; expected a sentencepiece .model")
        return cls(path.read_bytes(), where=str(path))

    @property
    def num_pieces(self) -> int:
        """How many ids text can have."""
        return int(self._processor.get_piece_size())

    @cached_property
    def digest(self) -> str:
        """The sha256 of the model."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def has_byte_fallback(self) -> bool:
        """Whether every text can be encoded without loss."""
        return any(self._processor.is_byte(index) for index in range(self.num_pieces))

    @cached_property
    def max_piece_chars(self) -> int:
        """Characters that one id can stand for."""
        model = self._processor
        return max(
            (
                len(model.id_to_piece(index))
                for index in range(self.num_pieces)
                if not (model.is_byte(index) or model.is_control(index) or model.is_unknown(index))
            ),
            default=1,
        )

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Ids of a text, no special tokens."""
        return np.asarray(self._processor.encode(text, out_type=int), dtype=np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """Ids of many texts, in one call."""
        if not texts:
            return []
        encoded = self._processor.encode(list(texts), out_type=int, num_threads=1)
        return [np.asarray(ids, dtype=np.int32) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; those of special tokens are left out."""
        num_pieces = self.num_pieces
        return str(self._processor.decode([int(i) for i in ids if 0 <= int(i) < num_pieces]))
