"""How a document lies in a sequence. A plan made for one layout is refused by a model of another.

document = [BOS] span span ... [EOS]
image    = [BOI] patch patch ... patch [EOI]      patches row by row
image    = [BOI] t patch ... patch [EOI]          with a time token

With clean copies an image that something behind it sees stands in its place without noise, and what is noised of
it, its twin, behind the document. A twin is the patches (and the time token) alone:

document = [BOS] span span ... [EOS] twin twin ...
"""

from typing import Any, Literal

from pydantic import Field

from transfusion.config import Config

ImageAttention = Literal["bidirectional", "causal"]


class SequenceLayout(Config):
    """What decides the length of a document and what its positions see."""

    patch_size: int = Field(default=2, ge=1)
    """Side of a patch, in latent pixels."""

    image_attention: ImageAttention = "bidirectional"
    """Whether a patch sees all patches of its own image, or only those before it."""

    # Left out where it is off: plans then read as they always did.
    time_token: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether a position before the patches, which they see and which sees them, carries the timestep; for models
    of `time_embedding: token`."""

    clean_copies: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether what stands behind an image sees it without noise. Such an image takes its patches twice, and two
    image slots. Off, as in the paper, what stands behind sees what was noised, up to the objective's
    `noise_limit`."""

    def patches(self, pixels: int) -> int:
        """Patches along a side of `pixels` latent pixels.

        Raises:
            ValueError: The patch size does not divide the side.
        """
        if pixels < 1 or pixels % self.patch_size:
            raise ValueError(
                f"a latent side must be a positive multiple of patch_size {self.patch_size}, got {pixels}"
            )
        return pixels // self.patch_size

    def num_patches(self, height: int, width: int) -> int:
        """Patches of a latent of `height` x `width` latent pixels."""
        return self.patches(height) * self.patches(width)

    def block_length(self, num_patches: int) -> int:
        """Positions of an image between BOI and EOI: its patches, and the time token before them."""
        return num_patches + int(self.time_token)

    def image_length(self, num_patches: int) -> int:
        """Positions that an image takes, BOI and EOI included."""
        return self.block_length(num_patches) + 2

    def twin_length(self, num_patches: int) -> int:
        """Positions that an image takes more where it is copied; 0 where none is."""
        return self.block_length(num_patches) if self.clean_copies else 0

    def document_length(self, document: Any) -> int:
        """Positions that a `sequence.document.Document` takes.

        Its type is not imported: this module is read when a job is planned, which does without numpy.
        """
        length = int(document.opens) + int(document.closes)
        for span in document.spans:
            if hasattr(span, "num_patches"):
                length += self.image_length(span.num_patches)
                length += self.block_length(span.num_patches) * span.copied
            else:
                length += len(span.ids)
        return length
