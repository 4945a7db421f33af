"""Documents in which images are tokens, read back: what is text, and what is an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from transfusion.artifacts.mixture import Mixture
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, slots=True)
class CodeLayout:
    """How images stand among the tokens of a mixture."""

    special: SpecialIds
    height: int
    width: int

    @classmethod
    def of(cls, mixture: Mixture) -> "CodeLayout":
        """That of a mixture with codes."""
        special = SpecialIds.after(mixture.num_pieces, num_codes=mixture.num_codes)
        return cls(special, mixture.latent_height, mixture.latent_width)

    def split(
        self, segments: Sequence[Int32[np.ndarray, " _"]]
    ) -> tuple[list[int], list[Int64[np.ndarray, "1 h w"]]]:
        """Ids of all text of a document, and the codes of its images."""
        ids = np.concatenate([*segments, np.zeros(0, np.int32)]).astype(np.int64)
        size = self.height * self.width
        is_text = np.ones(len(ids), bool)
        images = []
        for boi in np.flatnonzero(ids == self.special.boi).tolist():
            is_text[boi : boi + size + 2] = False
            codes = ids[boi + 1 : boi + 1 + size] - self.special.first_code
            images.append(codes.reshape(1, self.height, self.width))
        return ids[is_text].tolist(), images


class LossByKind:
    """The loss of codes and that of all other targets, each a token: together they are the language loss."""

    def __init__(self, special: SpecialIds) -> None:
        self._special = special
        self._sums = {"code": 0.0, "text": 0.0}
        self._counts = dict.fromkeys(self._sums, 0)

    def add(self, logits: Float[Tensor, "r v"], batch: PackedBatch) -> None:
        """Counts the targets of a batch."""
        targets = batch.text_targets.long()
        nats = F.cross_entropy(logits.float(), targets, reduction="none") * batch.text_weight
        codes = (targets >= self._special.first_code) & (batch.text_weight > 0)
        texts = ~codes & (batch.text_weight > 0)
        for kind, chosen in (("code", codes), ("text", texts)):
            self._sums[kind] += float(nats[chosen].sum())
            self._counts[kind] += int(chosen.sum())

    def losses(self) -> dict[str, float]:
        """`validation.code_loss` and `validation.text_loss` in nats a token, of what there was any."""
        return {
            f"validation.{kind}_loss": self._sums[kind] / count
            for kind, count in self._counts.items()
            if count
        }
