"""Made-up documents: a batch of them, or whole artifacts with a plan, without any image or text."""

import hashlib
import importlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipeline import commit, make
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.publish import publish_folder
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, rejects_table
from transfusion.artifacts.tables import store_table
from transfusion.artifacts.tokens import TOKENS_INDEX, TOKENS_RAW, TokenRow, tokens_table
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.stage import Made
from transfusion.storage.store import open_store

NUM_PIECES = 1024
LATENT = (8, 8, 8)
"""Of the quickstart: 16 patches of side 2."""
ROWS_PER_SHARD = 4096

Shape = tuple[int, int, int]


def make_plan(
    root: Path,
    *,
    num_pairs: int,
    num_texts: int,
    latent: Shape = LATENT,
    rows_per_shard: int = ROWS_PER_SHARD,
    **config: Any,
) -> Artifact:
    """A mixture of captioned images and prose at the quickstart's lengths."""
    inputs = made_up_inputs(
        root,
        num_pairs=num_pairs,
        num_texts=num_texts,
        latent=latent,
        rows_per_shard=rows_per_shard,
    )
    return plan(root, inputs, **config)


def plan(root: Path, inputs: dict[str, Artifact], **config: Any) -> Artifact:
    """Plans a run over inputs that are there."""
    defaults = {
        "sources": {
            "pairs": {"tokens": "captions", "latents": "latents", "weight": 5.0},
            "prose": {"tokens": "tokens", "weight": 1.0},
        },
        "sequence_length": 256,
        "sequences_per_micro_batch": 5,
        "lanes": 2,
        "num_steps": 100,
        "seed": 0,
    }
    return make(root, "data_pipelines.mix", defaults | config, inputs)


def made_up_inputs(
    root: Path,
    *,
    num_pairs: int,
    num_texts: int,
    latent: Shape = LATENT,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> dict[str, Artifact]:
    """Captions of about 9 tokens with their latents, and prose of about 300 tokens."""
    rng = np.random.default_rng(0)
    made = partial(_tokens, root, rng, rows_per_shard)
    return {
        "captions": made(count=num_pairs, kind="captions", layout="ti", mean_length=9),
        "tokens": made(count=num_texts, kind="prose", layout="t", mean_length=300),
        "latents": _latents(root, rng, rows_per_shard, count=num_pairs, latent=latent),
    }


def _tokens(
    root: Path,
    rng: np.random.Generator,
    rows_per_shard: int,
    *,
    count: int,
    kind: str,
    layout: str,
    mean_length: int,
) -> Artifact:
    files = []
    for first in range(0, count, rows_per_shard):
        rows = []
        for number in range(first, min(first + rows_per_shard, count)):
            length = int(rng.integers(mean_length // 2, 3 * mean_length // 2 + 1))
            key = f"{kind}/{number:09d}"
            rows.append(
                TokenRow(
                    key=key,
                    layout=layout,
                    segments=(rng.integers(0, NUM_PIECES, length, dtype=np.int32),),
                    content=hashlib.sha256(key.encode()).digest(),
                    num_bytes=4 * length,
                )
            )
        table = tokens_table(rows)
        files += _shard(root, first, table, index=TOKENS_INDEX, raw=TOKENS_RAW)
    return _commit(
        root,
        "data_pipelines.tokenize_text",
        kind,
        {},
        Made(files=files, metadata={"num_pieces": NUM_PIECES}),
    )


def _latents(
    root: Path, rng: np.random.Generator, rows_per_shard: int, *, count: int, latent: Shape
) -> Artifact:
    files = []
    channels, height, width = latent
    for first in range(0, count, rows_per_shard):
        numbers = range(first, min(first + rows_per_shard, count))
        means = rng.standard_normal((len(numbers), *latent), np.float32).astype(np.float16)
        std = np.full(latent, 0.05, np.float16)
        rows = [
            LatentRow(
                key=f"captions/{number:09d}",
                image_index=0,
                mean=mean,
                std=std,
                original_height=32,
                original_width=32,
                sha256=hashlib.sha256(f"image {number}".encode()).digest(),
                phash=int(rng.integers(0, 2**64, dtype=np.uint64)),
            )
            for number, mean in zip(numbers, means, strict=True)
        ]
        files += _shard(root, first, latents_table(rows), index=LATENTS_INDEX, raw=LATENTS_RAW)
    metadata = {
        "latent_channels": channels,
        "latent_height": height,
        "latent_width": width,
        "image_size_px": 4 * height,
    }
    inputs = {"autoencoder": _statistics(root, channels)}
    made = Made(files=files, metadata=metadata)
    return _commit(root, "data_pipelines.encode_images", "latents", inputs, made)


def _statistics(root: Path, channels: int) -> Artifact:
    """An autoencoder of which only the constants are there: a reader asks for no more."""
    folder = root.parent / f"{root.name}-statistics"
    folder.mkdir(parents=True, exist_ok=True)
    LatentStatistics(shift=(0.0,) * channels, scale=(1.0,) * channels, num_images=1).write(folder)
    uses = "transfusion.train.autoencoder"
    files = publish_folder(open_store(str(root)), f"{uses}/files", folder)
    return _commit(root, uses, "autoencoder", {}, Made(files=files))


def _shard(
    root: Path, first: int, table: Any, *, index: Sequence[str], raw: Sequence[str]
) -> list[Any]:
    store = open_store(str(root))
    tables = {ROWS: table, INDEX: table.select(list(index)), REJECTS: rejects_table([])}
    return [
        store_table(
            store,
            "made-up/pool/data",
            f"{first:09d}/{name}",
            part,
            raw_columns=[column for column in raw if column in part.column_names],
        )
        for name, part in tables.items()
    ]


def _commit(root: Path, uses: str, name: str, inputs: dict[str, Artifact], made: Made) -> Artifact:
    stage = importlib.import_module(uses).STAGE
    identity = hashlib.sha256(f"{uses} {name}".encode()).hexdigest()
    return commit(open_store(str(root)), uses, stage, identity, {}, inputs, made)
