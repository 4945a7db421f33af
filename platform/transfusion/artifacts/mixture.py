"""Kind `mixture`: the plan of a run. Which pieces of which documents are in which sequence; no data.

Files `train/<lane>/<block>`, each of some lanes from that one on, and `validation`: one row a sequence, in the
order lane, step, slot; a sequence is its references, 16 bytes each. Extending a run adds blocks and leaves earlier
ones as they were. `held_out`: what may be evaluated on, a row a document; `rejects`: what fits no sequence.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64, UInt64
from pydantic import BaseModel, ConfigDict, Field

from transfusion.artifacts.artifact import Artifact

SEQUENCES_SCHEMA = pa.schema(
    [
        ("lane", pa.int32()),
        ("step", pa.int64()),
        ("slot", pa.int16()),
        ("references", pa.binary()),  # pairs of uint64, little-endian; see `References`
    ]
)
VALIDATION = "validation"

HELD_OUT_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # in the order of `Mixture.sources`
        ("shard", pa.int32()),  # numbered as in `References`, through all sources
        ("row", pa.int32()),  # among the tokens of the shard
    ]
)
HELD_OUT = "held_out"
"""Documents that are held out and passed filters, takedown, duplicates and decontamination; sorted."""

MAX_SHARDS, MAX_LENGTH, MAX_START = 2**24, 2**20, 2**28


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MixtureSource(_Record):
    """One source of the mixture."""

    tokens: str
    """Role of its tokens among the mixture's inputs."""
    latents: str | None
    first_shard: int
    """Its shards are numbered from here, in the order of its listing."""
    weight: float
    """Share of the positions that it was to have."""
    held_out_fraction: float
    conditions: Literal["none", "earlier_images"] = "none"
    """Of its images: all but the last of a document are given as they are, and only that one is drawn."""


class MixturePhase(_Record):
    """Steps of a plan that have the same weights and filters, up to the next phase."""

    start_step: int
    weights: dict[str, float]
    """Share of the positions that each source was to have; those that take no part are left out."""
    largest_ratio_error: float
    """Of a source's share, in windows of 64 sequences."""
    statistics: dict[str, dict[str, float]]
    """For each source: share of the positions, tokens and images, epochs of what passes the phase's filters."""


class MixtureTakedown(_Record):
    """What became of the list of keys that must not be trained on."""

    listed: int
    not_found: int
    """Keys that name no document of the sources."""
    first_not_found: list[str]
    """The first five of them."""


class Mixture(_Record):
    """Constants of a plan: what a reader, a model and an evaluation need to know of it."""

    sequence_length: int
    sequences_per_micro_batch: int
    lanes: int
    steps: int
    """Fewer than were asked for where a source ended the plan."""
    steps_per_block: int
    lanes_per_file: int = 1
    """A file has as many steps of each; those from plans of version 3 and before have one lane."""
    image_slots: int
    text_rows: int
    latent_channels: int
    latent_height: int
    latent_width: int
    num_pieces: int
    num_codes: int = Field(0, exclude_if=lambda number: number == 0)
    """Ids of codes behind the special ones, where images are tokens; `latent_height` x `latent_width` of them are
    an image then, and no sequence holds a latent."""
    layout: dict[str, Any]
    """A `SequenceLayout`, resolved."""
    caption_drop: float
    condition_drop: dict[str, float] = {}
    """How often an image that has conditions does not see the `instruction`, the `image`, or `both`."""
    seed: int
    validation_micro_batches: int
    sources: dict[str, MixtureSource]
    statistics: dict[str, dict[str, float]]
    """For each source: documents, held out, positions, caption, prose and patch tokens, epochs."""
    phases: list[MixturePhase] = []
    """One at least, the first from step 0; none in plans that were made before there were phases."""
    takedown: MixtureTakedown | None = None


def read_mixture(artifact: Artifact) -> Mixture:
    """The constants of a plan."""
    return Mixture.model_validate(artifact.metadata)


def block_name(first_lane: int, block: int) -> str:
    """The file with `steps_per_block` steps of each of `lanes_per_file` lanes, fewer at either end of the plan."""
    return f"train/{first_lane:05d}/{block:06d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """Pieces of documents, column by column.

    A reference is two words:

        shard : 24   row : 40
        epoch : 15   image first : 1   length : 20   start : 28
    """

    shard: Int64[np.ndarray, " r"]
    row: Int64[np.ndarray, " r"]
    start: Int64[np.ndarray, " r"]
    """First position of the document in this piece."""
    length: Int64[np.ndarray, " r"]
    """Positions that it takes in its sequence, twins of its images included."""
    image_first: Bool[np.ndarray, " r"]
    """For a caption pair, which of the two comes first; of no meaning for others."""
    epoch: Int64[np.ndarray, " r"]

    def to_words(self) -> UInt64[np.ndarray, "r 2"]:
        """Sixteen bytes a reference."""
        shard, row, start, length, image_first, epoch = (
            values.astype(np.uint64)
            for values in (
                self.shard,
                self.row,
                self.start,
                self.length,
                self.image_first,
                # A document drawn 32,768 times gives its draws again.
                self.epoch & 0x7FFF,
            )
        )
        where = shard << np.uint64(40) | row
        what = (
            epoch << np.uint64(49) | image_first << np.uint64(48) | length << np.uint64(28) | start
        )
        return np.stack([where, what], axis=1)

    @classmethod
    def from_words(cls, words: UInt64[np.ndarray, "r 2"]) -> "References":
        """The inverse of `to_words`."""

        def bits(column: int, first: int, count: int) -> Int64[np.ndarray, " r"]:
            mask = np.uint64((1 << count) - 1)
            return ((words[:, column] >> np.uint64(first)) & mask).astype(np.int64)

        return cls(
            shard=bits(0, 40, 24),
            row=bits(0, 0, 40),
            start=bits(1, 0, 28),
            length=bits(1, 28, 20),
            image_first=bits(1, 48, 1).astype(bool),
            epoch=bits(1, 49, 15),
        )


def sequences_table(
    words: UInt64[np.ndarray, "r 2"],
    *,
    counts: Int64[np.ndarray, "lanes s"],
    first_lane: int,
    first_step: int,
    sequences_per_step: int,
) -> pa.Table:
    """A table of the sequences of some lanes from the references of all of them, `counts` in each."""
    offsets = np.concatenate([[0], np.cumsum(counts)]) * 16
    # 2 GiB of references in a file would be 130 million: files are far smaller.
    references = pa.Array.from_buffers(
        pa.binary(),
        counts.size,
        [None, pa.py_buffer(offsets.astype("<i4")), pa.py_buffer(words.astype("<u8").tobytes())],
    )
    lane, index = np.divmod(np.arange(counts.size), counts.shape[1])
    return pa.table(
        {
            "lane": pa.array(first_lane + lane, pa.int32()),
            "step": pa.array(first_step + index // sequences_per_step, pa.int64()),
            "slot": pa.array(index % sequences_per_step, pa.int16()),
            "references": references,
        },
        schema=SEQUENCES_SCHEMA,
    )
