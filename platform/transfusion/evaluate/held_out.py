"""Documents that the mixture kept from training, read from its latents and tokens by content."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LatentRow, latent_rows
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.pixels import PixelRow
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import TokenRow, token_rows
from transfusion.sequence.held_out import is_held_out


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A held-out image with the text of its document."""

    key: str
    caption_ids: tuple[int, ...]
    latent: Float[Tensor, "c h w"]
    """The posterior's mean, raw."""


def held_out_images(mixture: Artifact, *, limit: int) -> list[CaptionedImage]:
    """Held-out documents of one image and some text, by source and shard, in order of their keys."""
    found: list[CaptionedImage] = []
    for source in read_mixture(mixture).sources.values():
        if source.latents is None:
            continue
        latents = mixture.input(source.latents)
        tokens = row_entries(mixture.input(source.tokens))
        for shard, entry in row_entries(latents).items():
            if len(found) >= limit:
                return found[:limit]
            images = _by_key(
                latent_rows(
                    load_table(latents.store, entry), int(latents.metadata["latent_channels"])
                )
            )
            for document in token_rows(load_table(latents.store, tokens[shard])):
                if sorted(document.layout) != ["i", "t"] or document.key not in images:
                    continue
                image = images[document.key]
                if is_held_out(image.sha256, source.held_out_fraction):
                    found.append(
                        CaptionedImage(
                            document.key,
                            tuple(document.segments[0].tolist()),
                            torch.from_numpy(image.mean.astype("float32")),
                        )
                    )
    return found[:limit]


def text_documents(mixture: Artifact) -> Iterator[tuple[TokenRow, bool]]:
    """Every text-only document of the mixture, and whether it was held out."""
    for source in read_mixture(mixture).sources.values():
        tokens = mixture.input(source.tokens)
        for entry in row_entries(tokens).values():
            for document in token_rows(load_table(tokens.store, entry)):
                if "i" not in document.layout:
                    held = is_held_out(document.content, source.held_out_fraction)
                    yield document, held


def held_out_pixels_first(rows: Sequence[PixelRow], mixture: Artifact) -> list[PixelRow]:
    """Pixel rows, those that were held out before the others."""
    fraction = max(
        (s.held_out_fraction for s in read_mixture(mixture).sources.values() if s.latents),
        default=0.0,
    )
    return sorted(rows, key=lambda row: not is_held_out(row.sha256, fraction))


def _by_key(rows: list[LatentRow]) -> dict[str, LatentRow]:
    return {row.key: row for row in rows if row.image_index == 0}
