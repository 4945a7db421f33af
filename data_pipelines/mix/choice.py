"""Decides of one shard, from its index tables, which documents may take part: what a task of the reading runs.

Nothing here depends on other shards, and nothing is changed by it: it may be done anywhere, and again.
Axes: d = documents of a shard.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32, UInt64

from data_pipelines.mix.candidates import Candidates
from data_pipelines.mix.conditions import Filter
from data_pipelines.mix.config import MixConfig, MixSource
from data_pipelines.mix.constants import sources_of_codes
from data_pipelines.mix.contamination import Evaluations
from data_pipelines.mix.content import exact_numbers, held_out_numbers, numbers_of_later_images
from data_pipelines.mix.documents import Documents
from data_pipelines.mix.filters import columns_of, passing
from data_pipelines.mix.pieces import split
from data_pipelines.mix.takedown import Takedown
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.mixture import MAX_START
from transfusion.artifacts.shards import REJECTS_SCHEMA
from transfusion.ingest.index import (
    ShardIndex,
    perceptual_hashes,
    read_shard_index,
    text_behind_images,
)
from transfusion.sequence.held_out import held_out
from transfusion.storage.store import Store

_HASHES = ("phash",)


class ShardPlace(NamedTuple):
    """A shard of a source: its number in the mixture, and its index tables."""

    source: str
    shard: int
    tokens: FileEntry
    latents: FileEntry | None


class ShardChoice:
    """What all shards of a mixture are read with. Small but for the evaluation sets, and can be sent."""

    def __init__(
        self,
        config: MixConfig,
        inputs: Mapping[str, Artifact],
        *,
        takedown: Takedown,
        store: Store,
        num_patches: int,
    ) -> None:
        self._config, self._store, self._num_patches = config, store, num_patches
        self._takedown = takedown
        self._whole = sources_of_codes(config, inputs)
        self._evaluations = Evaluations(inputs, config.decontaminate, config.near_bits)
        self._hashes = _HASHES if config.deduplicate == "near" or config.decontaminate else ()

    def read(self, place: ShardPlace) -> Candidates:
        """The documents of a shard.

        Raises:
            ArtifactError: A table is gone or altered, or lacks what this mixture asks for.
        """
        name = place.source
        source = self._config.sources[name]
        phases = [phase.filters.get(name, []) for phase in self._config.phases]
        filters = [*source.filters, *itertools.chain(*phases)]
        columns = [*columns_of(filters), *self._hashes]
        index = read_shard_index(self._store, place.tokens, place.latents, columns)
        return self._choose(name, source, phases, index, place.shard)

    def _choose(
        self,
        name: str,
        source: MixSource,
        phases: list[list[Filter]],
        index: ShardIndex,
        shard: int,
    ) -> Candidates:
        """Each document goes one way: away with a reason, or on."""
        config = self._config
        length = 2 + index.text_tokens.astype(np.int64)
        length += index.images * np.int64(self._num_patches + 2)
        copied = self._copied(source, index)
        length += np.where(index.is_pair, 0, copied) * np.int64(self._num_patches)
        may_be = length.copy()
        if config.caption_first < 1:
            may_be += np.where(index.is_pair, copied, 0) * np.int64(self._num_patches)
        left = np.ones(len(length), bool)
        filtered: Counter[str] = Counter()
        listed, found = self._takedown.find(name, index.keys)
        for reason, leaves in self._reasons(source, index, listed):
            filtered[reason] += int((left & leaves).sum())
            left &= ~leaves
        whole = index.is_pair | (name in self._whole)
        longest = np.where(whole, config.sequence_length, MAX_START - 1)
        too_long = left & (may_be > longest)
        rejects = _rejects(name, index, may_be, longest, too_long)
        left &= ~too_long
        fraction = source.held_out_fraction
        fraction = config.held_out_fraction if fraction is None else fraction
        bits = np.zeros(len(length), np.uint16)
        for number, filters in enumerate(phases):
            passes = np.all(
                [np.ones(len(length), bool), *(passing(f, index) for f in filters)], axis=0
            )
            bits |= passes.astype(np.uint16) << np.uint16(number)
        phash, has_phash = self._first_hashes(index)
        later_images, later_owner = numbers_of_later_images(index, left)
        return Candidates(
            first_shard=shard,
            num_shards=1,
            documents=self._documents(source, index, shard, length, copied, bits, left),
            is_held_out=held_out(index.content, fraction)[left],
            held_out_number=held_out_numbers(index)[left],
            later_images=later_images,
            later_owner=later_owner,
            takedown_found=found,
            content=exact_numbers(index)[left],
            phash=phash[left],
            has_phash=has_phash[left],
            num_documents=len(length),
            filtered=dict(+filtered),
            rejects=rejects,
            columns=index.columns,
        )

    def _reasons(
        self, source: MixSource, index: ShardIndex, listed: Bool[np.ndarray, " d"]
    ) -> Iterator[tuple[str, Bool[np.ndarray, " d"]]]:
        yield "takedown", listed
        yield "image_missing", (index.images > 0) & (index.first_image < 0)
        yield "empty", (index.images == 0) & (index.text_tokens == 0)
        for condition in source.filters:
            yield condition.reason, ~passing(condition, index)
        if self._config.decontaminate:
            yield "contaminated", self._evaluations.contain(index)

    def _documents(
        self,
        source: MixSource,
        index: ShardIndex,
        shard: int,
        length: np.ndarray,
        copied: Int32[np.ndarray, " d"],
        bits: np.ndarray,
        left: Bool[np.ndarray, " d"],
    ) -> Documents:
        rows = np.flatnonzero(left)
        whole = Documents(
            shard=np.full(len(rows), shard, np.int32),
            row=rows.astype(np.int32),
            start=np.zeros(len(rows), np.int32),
            length=length[rows].astype(np.int32),
            closes=np.ones(len(rows), bool),
            text_tokens=index.text_tokens[rows],
            images=index.images[rows],
            copied=copied[rows],
            is_pair=index.is_pair[rows],
            identity=index.identity[rows],
            phases=bits[rows],
        )
        long = (whole.images > 0) & (whole.length > self._config.sequence_length)
        if not long.any():
            return whole
        layouts = index.tokens["layout"]
        pieces = [
            split(
                layouts[row].as_py(),
                index.tokens["lengths"][row].as_py(),
                image_length=self._num_patches + 2,
                longest=self._config.sequence_length,
                twin_length=self._num_patches if self._config.layout.clean_copies else 0,
                num_conditions=num_images - 1 if source.conditions != "none" else 0,
            )
            for row, num_images in zip(
                whole.row[long].tolist(), whole.images[long].tolist(), strict=True
            )
        ]
        counts = np.ones(len(rows), np.int64)
        counts[long] = [len(found) for found in pieces]
        repeated = {name: np.repeat(column, counts) for name, column in vars(whole).items()}
        at = np.repeat(long, counts)
        columns = zip(*itertools.chain(*pieces), strict=True)
        names = ("start", "length", "text_tokens", "images", "copied", "closes")
        for name, values in zip(names, columns, strict=True):
            repeated[name][at] = values
        return Documents(**repeated)

    def _copied(self, source: MixSource, index: ShardIndex) -> Int32[np.ndarray, " d"]:
        """Images of which a later segment sees a clean copy; of a pair, if its image comes first."""
        if not self._config.layout.clean_copies:
            return np.zeros_like(index.images)
        behind = np.where(index.is_pair, index.text_tokens, text_behind_images(index.tokens)) > 0
        others = 0 if source.conditions != "none" else index.images - 1
        return np.where(index.images > 0, others + behind, 0).astype(np.int32)

    def _first_hashes(
        self, index: ShardIndex
    ) -> tuple[UInt64[np.ndarray, " d"], Bool[np.ndarray, " d"]]:
        """Of pairs and single images; a page that has one image in common with another is no duplicate."""
        one_image = (index.images == 1) & (index.is_pair | (index.text_tokens == 0))
        one_image &= index.first_image >= 0
        if not self._hashes or index.latents is None or not len(index.latents):
            return np.zeros(len(one_image), np.uint64), np.zeros(len(one_image), bool)
        hashes, known = perceptual_hashes(index.latents, "deduplicate: latents")
        rows = np.maximum(index.first_image, 0)
        return hashes[rows], one_image & known[rows]


def _rejects(
    name: str,
    index: ShardIndex,
    length: np.ndarray,
    longest: np.ndarray,
    too_long: Bool[np.ndarray, " d"],
) -> pa.Table:
    rows = np.flatnonzero(too_long)
    details = [
        f"{length[row]} positions, at most {longest[row]}: a caption stays in a sequence with its image"
        for row in rows.tolist()
    ]
    keys = pc.binary_join_element_wise(name, index.keys.take(pa.array(rows)).combine_chunks(), "/")
    columns = [
        keys,
        pa.array(["too_long"] * len(rows), pa.string()),
        pa.array(details, pa.string()),
    ]
    return pa.table(columns, schema=REJECTS_SCHEMA)
