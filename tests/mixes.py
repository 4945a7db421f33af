"""Mixtures of documents that a test spells out: artifacts of tokens and latents without tokenizer or pictures."""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.pipeline import commit, make
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.latents import LATENTS_INDEX, LATENTS_RAW, LatentRow, latents_table
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.publish import publish_folder
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, rejects_table
from transfusion.artifacts.tables import load_table, store_table
from transfusion.artifacts.tokens import TOKENS_RAW, TokenRow, index_table, tokens_table
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.ingest.reader import MixtureReader
from transfusion.stage import Made
from transfusion.storage.store import open_store

LATENT = (2, 4, 4)
"""Four patches of side 2: an image takes six positions."""
NUM_PIECES = 100
MIX = "data_pipelines.mix"


@dataclass(frozen=True, kw_only=True)
class Doc:
    """A document: the number of tokens of each text, or the name of an image, in order."""

    key: str
    segments: Sequence[int | str]
    text: str | None = None
    """Documents with the same are the same text; the key when left out."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    size_px: tuple[int, int] = (64, 48)
    """Height and width of its images."""
    phash: int | None = None


def pair(key: str, image: str | None = None, tokens: int = 5, **more: Any) -> Doc:
    """A caption and an image of its own, unless one is named."""
    return Doc(key=key, segments=[tokens, image or f"image of {key}"], **more)


def prose(key: str, tokens: int = 40, **more: Any) -> Doc:
    """Text alone."""
    return Doc(key=key, segments=[tokens], **more)


def inputs_of(
    root: Path, name: str, docs: Sequence[Doc], rows_per_shard: int = 8
) -> dict[str, Artifact]:
    """`<name>` with the tokens, and `<name>_latents` where there are images."""
    parts = [docs[i : i + rows_per_shard] for i in range(0, len(docs), rows_per_shard)]
    tokens, latents = [], []
    for number, part in enumerate(parts):
        rows = [_token_row(doc) for doc in part]
        tables = {ROWS: tokens_table(rows), INDEX: index_table(rows)}
        tokens += _files(root, number, tables, TOKENS_RAW)
        table = latents_table([row for doc in part for row in _latent_rows(doc)])
        tables = {ROWS: table, INDEX: table.select(list(LATENTS_INDEX))}
        latents += _files(root, number, tables, LATENTS_RAW)
    made = Made(files=tokens, metadata={"num_pieces": NUM_PIECES})
    found = {name: _commit(root, "data_pipelines.tokenize_text", name, {}, made)}
    if any(isinstance(segment, str) for doc in docs for segment in doc.segments):
        channels, height, width = LATENT
        shape = {"latent_channels": channels, "latent_height": height, "latent_width": width}
        statistics = {"autoencoder": _statistics(root)}
        made = Made(files=latents, metadata=shape)
        latents_name = f"{name}_latents"
        found[latents_name] = _commit(
            root, "data_pipelines.encode_images", latents_name, statistics, made
        )
    return found


def mix(
    root: Path,
    docs: Mapping[str, Sequence[Doc]],
    *,
    sources: Mapping[str, Any] | None = None,
    extra: Mapping[str, Artifact] | None = None,
    rows_per_shard: int = 8,
    **config: Any,
) -> Artifact:
    """A plan over documents by source; `sources` has further options of these, `extra` further inputs."""
    inputs = dict(extra or {})
    described = {}
    for name, own in docs.items():
        found = inputs_of(root, name, own, rows_per_shard)
        inputs |= found
        latents = {"latents": f"{name}_latents"} if len(found) == 2 else {}
        described[name] = {"tokens": name, **latents, **(sources or {}).get(name, {})}
    defaults = {
        "sequence_length": 64,
        "sequences_per_micro_batch": 2,
        "lanes": 2,
        "num_steps": 10,
        "seed": 0,
        "held_out_fraction": 0.0,
        "validation_micro_batches": 1,
    }
    return make(root, MIX, {**defaults, **config, "sources": described}, inputs)


def keys_of(mixture: Artifact) -> list[str]:
    """source/key of every reference of the plan, in order."""
    reader = MixtureReader(mixture, seed=0)
    return [
        key
        for step in range(reader.steps)
        for lane in range(reader.lanes)
        for key in reader.document_ids(step, lane)
    ]


def filtered(mixture: Artifact) -> dict[str, int]:
    """Documents that were filtered, by reason."""
    outcomes = mixture.manifest.content.outcomes
    assert outcomes is not None
    return dict(outcomes.filtered)


def plan_lanes(mixture: Artifact) -> list[list[bytes]]:
    """References of the training sequences of each lane, in their order."""
    lanes: list[list[bytes]] = [[] for _ in range(read_mixture(mixture).lanes)]
    for file in mixture.manifest.content.files:
        if file.name.startswith("train/"):
            table = load_table(mixture.store, file)
            rows = zip(table["lane"].to_pylist(), table["references"].to_pylist(), strict=True)
            for lane, references in rows:
                lanes[lane].append(references)
    return lanes


def sha_of_image(name: str) -> bytes:
    """Of the source bytes of an image of that name."""
    return hashlib.sha256(f"image {name}".encode()).digest()


def _token_row(doc: Doc) -> TokenRow:
    rng = np.random.default_rng(len(doc.key))
    lengths = [segment for segment in doc.segments if isinstance(segment, int)]
    text = doc.key if doc.text is None else doc.text
    return TokenRow(
        key=doc.key,
        layout="".join("t" if isinstance(segment, int) else "i" for segment in doc.segments),
        segments=tuple(rng.integers(0, NUM_PIECES, n, dtype=np.int32) for n in lengths),
        content=hashlib.sha256(text.encode()).digest(),
        num_bytes=sum(lengths),
        metadata=doc.metadata,
    )


def _latent_rows(doc: Doc) -> list[LatentRow]:
    names = [segment for segment in doc.segments if isinstance(segment, str)]
    rows = []
    for index, name in enumerate(names):
        sha = sha_of_image(name)
        own = int.from_bytes(sha[:8], "little")
        rows.append(
            LatentRow(
                key=doc.key,
                image_index=index,
                mean=np.full(LATENT, sha[0] / 256, np.float16),
                std=np.zeros(LATENT, np.float16),
                original_height=doc.size_px[0],
                original_width=doc.size_px[1],
                sha256=sha,
                phash=own if doc.phash is None else doc.phash,
            )
        )
    return rows


def _files(root: Path, number: int, tables: Mapping[str, Any], raw: Sequence[str]) -> list[Any]:
    store = open_store(str(root))
    return [
        store_table(
            store,
            "made-up/pool/data",
            f"{number:05d}/{name}",
            table,
            raw_columns=[column for column in raw if column in table.column_names],
        )
        for name, table in {**tables, REJECTS: rejects_table([])}.items()
    ]


def _statistics(root: Path) -> Artifact:
    folder = root.parent / f"{root.name}-statistics"
    folder.mkdir(parents=True, exist_ok=True)
    channels = LATENT[0]
    LatentStatistics(shift=(0.0,) * channels, scale=(1.0,) * channels, num_images=1).write(folder)
    uses = "transfusion.train.autoencoder"
    files = publish_folder(open_store(str(root)), f"{uses}/files", folder)
    return _commit(root, uses, "autoencoder", {}, Made(files=files))


def _commit(root: Path, uses: str, name: str, inputs: dict[str, Artifact], made: Made) -> Artifact:
    stage = importlib.import_module(uses).STAGE
    content = " ".join(file.sha256 for file in made.files)
    identity = hashlib.sha256(f"{uses} {name} {content}".encode()).hexdigest()
    return commit(open_store(str(root)), uses, stage, identity, {}, inputs, made)
