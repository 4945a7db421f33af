"""The documents of a mixture as columns of numbers: who takes part, and how long each is.

About 40 bytes a document, and twice as many while the shards are joined: a plan of ten million peaks at 1.6 GB.
Axes: d = pieces of documents, nearly all of them whole.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt16, UInt64

from transfusion.sequence.order import PairOrder, Stream, Twins


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Pieces of documents in the order in which they are stored, those of a document one after the other."""

    shard: Int32[np.ndarray, " d"]
    row: Int32[np.ndarray, " d"]
    start: Int32[np.ndarray, " d"]
    """First position of the document in this piece: 0 in the first, and only there."""
    length: Int32[np.ndarray, " d"]
    """Positions that it takes; of a pair those with the caption first."""
    closes: Bool[np.ndarray, " d"]
    """Its last position is EOS."""
    text_tokens: Int32[np.ndarray, " d"]
    images: Int32[np.ndarray, " d"]
    copied: Int32[np.ndarray, " d"]
    """Images that have a noised twin behind it; of a pair those that have one if its image comes first."""
    is_pair: Bool[np.ndarray, " d"]
    identity: UInt64[np.ndarray, " d"]
    phases: UInt16[np.ndarray, " d"]
    """A bit for each phase in whose filters it passes."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def num_documents(self) -> int:
        """Documents, however many pieces they are in."""
        return int((self.start == 0).sum())

    def of(self, chosen: Bool[np.ndarray, " w"]) -> Bool[np.ndarray, " d"]:
        """A choice among whole documents as one among pieces."""
        return chosen[np.cumsum(self.start == 0) - 1]

    def select(self, chosen: Bool[np.ndarray, " d"]) -> "Documents":
        """Some of them, in their order."""
        return Documents(**{name: column[chosen] for name, column in vars(self).items()})

    @staticmethod
    def join(parts: "list[Documents]") -> "Documents":
        """All of them, one part after the other."""
        return Documents(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in Documents.__dataclass_fields__
            }
        )

    def stream(
        self,
        *,
        weight: float,
        source: int,
        num_patches: int,
        order: PairOrder,
        whole: bool = False,
    ) -> Stream:
        """What the packer sees of them.

        Args:
            order: Of the pairs.
            whole: Not even text is cut, for images may be among its tokens.
        """
        images, twins = self.images, None
        # A piece has a target at every position but the last, at BOI and at a patch.
        targets = self.length - 1 - self.images * (num_patches + 1)
        if self.copied.any():
            always = np.where(self.is_pair, 0, self.copied).astype(np.int32)
            images, targets = images + always, targets - always * num_patches
            twins = Twins(
                order=order,
                identity=self.identity,
                copied=self.is_pair & (self.copied > 0),
                positions=num_patches,
            )
        return Stream(
            lengths=self.length,
            images=images,
            targets=targets.astype(np.int32),
            run_starts=_starts(self.shard),
            weight=weight,
            splittable=not (whole or self.images.any()),
            source=source,
            twins=twins,
        )


def _starts(shard: Int32[np.ndarray, " d"]) -> Int64[np.ndarray, " k"]:
    return np.flatnonzero(np.concatenate([[True], shard[1:] != shard[:-1]])).astype(np.int64)
