"""What a mixture must not be trained on, because it is evaluated on it.

Axes: d = documents of a shard; i = images of a shard.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Bool, UInt64

from data_pipelines.mix.near import NearIndex
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import index_entries
from transfusion.artifacts.tables import load_table
from transfusion.ingest.index import ShardIndex, digest_words, perceptual_hashes


class Evaluations:
    """The contents of evaluation sets: texts without images, and images."""

    def __init__(
        self, inputs: Mapping[str, Artifact], roles: Sequence[str], near_bits: int
    ) -> None:
        texts, images, hashes = [], [], []
        for role in roles:
            artifact = inputs[role]
            for entry in index_entries(artifact).values():
                if artifact.kind == "latents":
                    table = load_table(artifact.store, entry)
                    images.append(digest_words(table["sha256"]))
                    known, is_known = perceptual_hashes(table, f"decontaminate: {role}")
                    hashes.append(known[is_known])
                else:
                    table = load_table(artifact.store, entry, ["layout", "content"])
                    is_text = pc.invert(pc.match_substring(table["layout"], "i"))
                    texts.append(digest_words(table.filter(is_text)["content"]))
        # One set: a document of codes has its image's digest where a text has its own.
        self._contents = _joined([*texts, *images])
        self._near = NearIndex(_joined(hashes), near_bits)

    def contain(self, index: ShardIndex) -> Bool[np.ndarray, " d"]:
        """Documents without images of which the text, and others of which any image, is evaluated on."""
        found = np.isin(digest_words(index.tokens["content"]), self._contents)
        found &= index.images == 0
        if index.latents is not None and len(index.latents) and len(self._contents):
            is_known = np.isin(digest_words(index.latents["sha256"]), self._contents)
            hashes, there = perceptual_hashes(index.latents, "latents")
            is_known |= there & self._near.near(hashes)
            found |= _any_image(is_known, index)
        return found


def _any_image(is_known: Bool[np.ndarray, " i"], index: ShardIndex) -> Bool[np.ndarray, " d"]:
    # Rows of latents are sorted by key, so the images of a document are side by side.
    sums = np.concatenate([[0], np.cumsum(is_known)])
    first = np.maximum(index.first_image, 0)
    last = first + np.where(index.first_image >= 0, index.images, 0)
    return sums[last] > sums[first]


def _joined(parts: list[UInt64[np.ndarray, " _"]]) -> UInt64[np.ndarray, " _"]:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))
