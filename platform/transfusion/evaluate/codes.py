"""Documents in which images are tokens, read back: what is text, and what is an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from transfusion.artifacts.mixture import Mixture
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
