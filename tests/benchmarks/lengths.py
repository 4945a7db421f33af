"""Artifacts of which only the index tables are there: enough to plan from, in seconds for ten million documents.

Captioned images of 256 patches with captions of about 30 tokens, and prose of about 1,200 tokens: both kinds
have about as many positions when four of five documents are images.
"""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt64

from tests.pipeline import commit
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_SCHEMA
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import INDEX
from transfusion.artifacts.tables import store_table
from transfusion.artifacts.tokens import META, TOKENS_SCHEMA
from transfusion.stage import Made
from transfusion.storage.store import Store, open_store

NUM_PIECES = 32_000
LATENT = (8, 32, 32)
CAPTION_TOKENS, PROSE_TOKENS = 30, 1200
ROWS_PER_SHARD = 10_000
"""As many as `img2dataset` puts into a tar."""

MIX = {
    "sources": {
        "pairs": {"tokens": "captions", "latents": "latents"},
        "prose": {"tokens": "tokens"},
    },
    "sequence_length": 4096,
    "sequences_per_micro_batch": 4,
    "lanes": 16,
    "seed": 0,
    "held_out_fraction": 0.001,
}


LICENCES = ("cc0", "cc-by", "cc-by-sa", "unknown")

CHOOSING: dict[str, Any] = {
    "sources": {
        "pairs": {
            "tokens": "captions",
            "latents": "latents",
            "filters": [
                {"column": "score", "at_least": 3.5},
                {"column": "short_side", "at_least": 224},
                {"column": "aspect", "at_least": 0.2, "at_most": 5},
                {"column": "text_tokens", "at_least": 4, "at_most": 256},
                {"column": "licence", "none_of": ["unknown"]},
            ],
        },
        "prose": {
            "tokens": "tokens",
            "filters": [
                {"column": "score", "at_least": 3.5},
                {"column": "licence", "matches": "^cc"},
            ],
        },
    },
    "deduplicate": "near",
}
"""A filter of each kind, which take a quarter of the documents out, and near duplicates."""


def made_up_index(
    root: Path, *, num_pairs: int, num_texts: int, look_alikes: bool = False
) -> dict[str, Artifact]:
    """Inputs of a mixture by role.

    Args:
        look_alikes: One image of a hundred has a near twin, and one of eighty looks like all others of these:
            100,000 among ten million documents.
    """
    store = open_store(str(root))
    rng = np.random.default_rng(0)
    captions, latents, prose = [], [], []
    for first in range(0, num_pairs, ROWS_PER_SHARD):
        count = min(ROWS_PER_SHARD, num_pairs - first)
        keys = _keys(first, count)
        tokens = _tokens(rng, keys, layout="ti", mean=CAPTION_TOKENS)
        captions.append(_stored(store, first, tokens))
        latents.append(_stored(store, first, _latents(rng, keys, look_alikes)))
    for first in range(0, num_texts, ROWS_PER_SHARD):
        keys = _keys(first, min(ROWS_PER_SHARD, num_texts - first))
        prose.append(_stored(store, first, _tokens(rng, keys, layout="t", mean=PROSE_TOKENS)))
    channels, height, width = LATENT
    shape = {"latent_channels": channels, "latent_height": height, "latent_width": width}
    pieces = {"num_pieces": NUM_PIECES}
    return {
        "captions": _committed(store, "data_pipelines.tokenize_text", captions, pieces),
        "latents": _committed(store, "data_pipelines.encode_images", latents, shape),
        "tokens": _committed(store, "data_pipelines.tokenize_text", prose, pieces),
    }


def positions_of(documents: int) -> int:
    """Positions of that many documents, about."""
    pairs = documents * 4 // 5
    return pairs * (CAPTION_TOKENS + 259) + (documents - pairs) * (PROSE_TOKENS - 50)


def _keys(first: int, count: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(np.arange(first, first + count)).cast(pa.string()), 10, "0")


def _tokens(rng: np.random.Generator, keys: pa.Array, *, layout: str, mean: int) -> pa.Table:
    count = len(keys)
    lengths = rng.lognormal(np.log(mean) - 0.32, 0.8, count).astype(np.int32) + 1
    columns: dict[str, Any] = {
        "key": keys,
        "layout": pa.array([layout]).take(pa.array(np.zeros(count, np.int32))),
        "lengths": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), lengths),
        "content": _digests(rng, count),
    }
    table = pa.table(columns, schema=pa.schema([TOKENS_SCHEMA.field(name) for name in columns]))
    licences = pa.array(LICENCES).take(pa.array(np.arange(count) * 7 % 11 % len(LICENCES)))
    table = table.append_column(f"{META}score", pa.array(rng.normal(5, 1, count)))
    return table.append_column(f"{META}licence", licences)


def _latents(rng: np.random.Generator, keys: pa.Array, look_alikes: bool) -> pa.Table:
    columns = {
        "key": keys,
        "image_index": np.zeros(len(keys), np.int16),
        "height": np.full(len(keys), LATENT[1], np.int16),
        "width": np.full(len(keys), LATENT[2], np.int16),
        "original_height": rng.integers(200, 2000, len(keys), dtype=np.int32),
        "original_width": rng.integers(200, 2000, len(keys), dtype=np.int32),
        "sha256": _digests(rng, len(keys)),
        "phash": rng.integers(0, 2**64, len(keys), dtype=np.uint64),
    }
    if look_alikes:
        _bring_near(rng, columns["phash"])
    return pa.table(columns, schema=pa.schema([LATENTS_SCHEMA.field(name) for name in columns]))


def _bring_near(rng: np.random.Generator, hashes: UInt64[np.ndarray, " n"]) -> None:
    """Every hundredth hash is within six bits of the next, every eightieth within four of one for all shards."""
    of_all = np.uint64(0x9E3779B97F4A7C15)
    hashes[::80] = of_all ^ _some_bits(rng, len(hashes[::80]), 4)
    twins = hashes[1:-1:100]
    twins[:] = hashes[2::100][: len(twins)] ^ _some_bits(rng, len(twins), 6)


def _some_bits(rng: np.random.Generator, count: int, number: int) -> UInt64[np.ndarray, " n"]:
    bits = rng.integers(0, 64, (count, number), dtype=np.uint64)
    return np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)


def _digests(rng: np.random.Generator, count: int) -> pa.Array:
    data = pa.py_buffer(rng.bytes(32 * count))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), count, [None, data])


def _stored(store: Store, first: int, table: pa.Table) -> FileEntry:
    raw = [name for name in ("content", "sha256") if name in table.column_names]
    name = f"{first:010d}/{INDEX}"
    return store_table(store, "made-up/pool/data", name, table, raw_columns=raw)


def _committed(
    store: Store, uses: str, files: list[FileEntry], metadata: dict[str, int]
) -> Artifact:
    stage = importlib.import_module(uses).STAGE
    identity = hashlib.sha256(f"{uses} {len(files)} {files[0].sha256}".encode()).hexdigest()
    return commit(store, uses, stage, identity, {}, {}, Made(files=files, metadata=metadata))
