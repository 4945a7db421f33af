"""Documents that the mixture kept from training and lists as held out, read from its latents and tokens."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LatentRow, latent_rows
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import HELD_OUT, read_mixture
from transfusion.artifacts.pixels import PixelRow
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import TokenRow, token_rows
from transfusion.evaluate.codes import CodeLayout
from transfusion.ingest.index import shard_ids
from transfusion.sequence.held_out import is_held_out


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """A held-out image with the text of its document."""

    key: str
    caption_ids: tuple[int, ...]
    latent: Float[Tensor, "c h w"] | Int[Tensor, "1 h w"]
    """The posterior's mean, raw; where images are tokens, the codes."""


def held_out_images(mixture: Artifact, *, limit: int) -> list[CaptionedImage]:
    """Held-out documents of one image and some text, by source and shard, in order of their keys."""
    found: list[CaptionedImage] = []
    for shard in _shards(mixture):
        if len(found) >= limit:
            break
        if (shard.latents is None and shard.codes is None) or not len(shard.held_out):
            continue
        table = load_table(mixture.store, shard.tokens).take(pa.array(shard.held_out))
        if shard.codes is not None:
            found += _coded_images(table, shard.codes)
            continue
        documents = [d for d in token_rows(table) if sorted(d.layout) == ["i", "t"]]
        images = _images(mixture, shard, [document.key for document in documents])
        found += [
            CaptionedImage(
                document.key,
                tuple(document.segments[0].tolist()),
                torch.from_numpy(images[document.key, 0].mean.astype("float32")),
            )
            for document in documents
        ]
    return found[:limit]


@dataclass(frozen=True, slots=True)
class Edit:
    """A held-out document of images, an instruction, and the image that they are to become."""

    key: str
    of: tuple[bytes, ...]
    """What the images before the instruction are, by the sha256 of their files."""
    images: Float[Tensor, "k c h w"]
    """Raw means of their posteriors."""
    instruction_ids: tuple[int, ...]
    target: Float[Tensor, "c h w"]


def held_out_edits(mixture: Artifact, *, limit: int) -> list[Edit]:
    """Held-out edits of the sources whose earlier images are conditions, by source and shard, in order of keys."""
    found: list[Edit] = []
    for shard in _shards(mixture):
        if len(found) >= limit:
            break
        if shard.latents is None or not shard.has_conditions or not len(shard.held_out):
            continue
        table = load_table(mixture.store, shard.tokens).take(pa.array(shard.held_out))
        documents = [d for d in token_rows(table) if re.fullmatch("i+t+i", d.layout)]
        images = _images(mixture, shard, [document.key for document in documents])
        for document in documents:
            rows = [images[document.key, index] for index in range(document.layout.count("i"))]
            means = torch.from_numpy(np.stack([row.mean for row in rows]).astype("float32"))
            found.append(
                Edit(
                    document.key,
                    tuple(row.sha256 for row in rows[:-1]),
                    means[:-1],
                    tuple(np.concatenate(document.segments).tolist()),
                    means[-1],
                )
            )
    return found[:limit]


def text_documents(mixture: Artifact) -> Iterator[tuple[TokenRow, bool]]:
    """Text-only documents of the mixture, and whether they are held out.

    One of which the content is held out, and which the mixture took away, is neither one nor the other.
    """
    largest = max(source.held_out_fraction for source in read_mixture(mixture).sources.values())
    for shard in _shards(mixture):
        held_out = set(shard.held_out.tolist())
        for row, document in enumerate(token_rows(load_table(mixture.store, shard.tokens))):
            if "i" in document.layout or (shard.codes and shard.codes.split(document.segments)[1]):
                continue
            if row in held_out:
                yield document, True
            elif not is_held_out(document.content, largest):
                yield document, False


def held_out_pixels_first(rows: Sequence[PixelRow], mixture: Artifact) -> list[PixelRow]:
    """Pixel rows, those that were held out before the others."""
    fraction = max(
        (
            source.held_out_fraction
            for source in read_mixture(mixture).sources.values()
            if source.latents or mixture.input(source.tokens).metadata.get("num_codes")
        ),
        default=0.0,
    )
    return sorted(rows, key=lambda row: not is_held_out(row.sha256, fraction))


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """A shard of a source, as the mixture numbers them."""

    tokens: FileEntry
    latents: FileEntry | None
    latent_channels: int
    codes: CodeLayout | None
    """Where images are among the tokens."""
    has_conditions: bool
    held_out: Int32[np.ndarray, " d"]
    """Rows of its tokens that the mixture lists."""


def _shards(mixture: Artifact) -> Iterator[_Shard]:
    listed = load_table(mixture.store, mixture.entry(HELD_OUT))
    numbers, rows = listed["shard"].to_numpy(), listed["row"].to_numpy()
    plan = read_mixture(mixture)
    for source in plan.sources.values():
        tokens = mixture.input(source.tokens)
        latents = mixture.input(source.latents) if source.latents else None
        ids = shard_ids(tokens, latents)
        edges = np.searchsorted(numbers, source.first_shard + np.arange(len(ids) + 1))
        of_tokens = row_entries(tokens)
        of_latents = row_entries(latents) if latents else {}
        for shard_id, first, end in zip(ids, edges[:-1], edges[1:], strict=True):
            yield _Shard(
                tokens=of_tokens[shard_id],
                latents=of_latents.get(shard_id),
                latent_channels=int(latents.metadata["latent_channels"]) if latents else 0,
                codes=CodeLayout.of(plan) if tokens.metadata.get("num_codes") else None,
                has_conditions=source.conditions != "none",
                held_out=rows[first:end],
            )


def _coded_images(table: pa.Table, codes: CodeLayout) -> Iterator[CaptionedImage]:
    for document in token_rows(table):
        text, images = codes.split(document.segments)
        if text and len(images) == 1:
            yield CaptionedImage(document.key, tuple(text), torch.from_numpy(images[0]))


def _images(
    mixture: Artifact, shard: _Shard, keys: Sequence[str]
) -> dict[tuple[str, int], LatentRow]:
    """All images of documents, by key and index."""
    assert shard.latents is not None
    table = load_table(mixture.store, shard.latents)
    wanted = table.filter(pc.is_in(table["key"], pa.array(keys, pa.string())))
    rows = latent_rows(wanted, shard.latent_channels)
    return {(row.key, row.image_index): row for row in rows}
