"""The worker that makes token ids of shards: images are decoded ahead of the encoder.

Of a shard there are in memory its texts and codes, four bytes a code, and what `load_images` holds ahead.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int32, UInt8

from data_pipelines.decoders import running_decoders
from data_pipelines.documents import Document, Text
from data_pipelines.encode_images.batches import micro_batches
from data_pipelines.encode_images.encoder import threads
from data_pipelines.images import load_images
from data_pipelines.preparation import Preparation
from data_pipelines.recaptioned import Captions, documents_of
from data_pipelines.shards import ShardTask
from data_pipelines.sources.source import open_listing
from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from data_pipelines.tokenize_images.rows import CodedImage, coded_row
from data_pipelines.tokenize_text.run import tokenize
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import Outcomes
from transfusion.artifacts.pool import ShardPool, ShardRecord
from transfusion.artifacts.shards import INDEX, REJECTS, ROWS, Reject, count_reasons, rejects_table
from transfusion.artifacts.tokens import TOKENS_RAW, TokenRow, index_table, tokens_table
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.resources import PoolResources
from transfusion.sequence.special import SpecialIds
from transfusion.storage.store import Store
from transfusion.tokenizer.tokenizer import Tokenizer


class TokenizeImagesShard:
    """Holds one encoder, and the decoders that feed it."""

    def __init__(
        self,
        listing: Artifact,
        tokenizer: Tokenizer,
        autoencoder: Artifact,
        config: TokenizeImagesConfig,
        captions: Captions | None = None,
        *,
        store: Store,
        pool: str,
        resources: PoolResources,
    ) -> None:
        device = "cuda" if resources.gpus_per_actor else "cpu"
        self._listing = open_listing(listing)
        self._tokenizer = tokenizer
        self._autoencoder = Autoencoder.load(autoencoder.folder(), device=device)
        self._special = SpecialIds.after(
            tokenizer.num_pieces, num_codes=self._autoencoder.num_codes or 0
        )
        self._config, self._captions = config, captions
        self._preparation = Preparation(config.limits, config.sizes_px, config.jpeg_draft)
        self._num_decoders = max(1, int(resources.cpus_per_actor))
        self._pool = ShardPool(store, pool)

    def make(self, task: ShardTask) -> ShardRecord:
        """Columns out: those of `TOKENS_SCHEMA`; in the index also the documents' metadata."""
        rejects: list[Reject] = []
        documents: dict[str, Document] = {}
        found = documents_of(task, self._listing, self._captions, self._pool.store)
        passing = _noted(found, documents, rejects)
        codes, failed = self._encode(passing)
        rejects += failed.values()
        rows = [
            self._row(document, codes) for key, document in documents.items() if key not in failed
        ]
        return self._pool.commit(
            task.key,
            {
                ROWS: tokens_table(rows),
                INDEX: index_table(rows),
                REJECTS: rejects_table(rejects),
            },
            outcomes=Outcomes(
                input=len(rows) + len(rejects), written=len(rows), rejected=count_reasons(rejects)
            ),
            raw_columns=TOKENS_RAW,
        )

    def _encode(
        self, documents: Iterable[Document]
    ) -> tuple[dict[tuple[str, int], CodedImage], dict[str, Reject]]:
        """Every image by key and index; and, of documents that have one without codes, the first reason."""
        found: dict[tuple[str, int], CodedImage] = {}
        failed: dict[str, Reject] = {}
        images = load_images(
            documents,
            preparation=self._preparation,
            decoders=running_decoders(self._num_decoders),
        )
        for batch in micro_batches(images, self._config.micro_batch):
            if isinstance(batch, Reject):
                failed.setdefault(batch.key, batch)
                continue
            for row, codes in zip(batch.rows, self._codes(batch.pixels), strict=False):
                found[row.key, row.image_index] = CodedImage(codes, row.facts.sha256)
        return found, failed

    def _codes(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> Int32[np.ndarray, "b p"]:
        with threads(self._config.threads_per_actor):
            codes = self._autoencoder.encode_indices(torch.from_numpy(pixels))
        return codes.flatten(1).cpu().numpy().astype(np.int32)

    def _row(self, document: Document, codes: dict[tuple[str, int], CodedImage]) -> TokenRow:
        texts = [segment.text for segment in document.segments if isinstance(segment, Text)]
        if len(texts) == len(document.segments):
            return tokenize(document, self._tokenizer)
        ids: Iterator[Int32[np.ndarray, " _"]] = iter(self._tokenizer.encode_all(texts))
        parts: list[Int32[np.ndarray, " _"] | CodedImage] = []
        number = 0
        for segment in document.segments:
            if isinstance(segment, Text):
                parts.append(next(ids))
            else:
                parts.append(codes[document.key, number])
                number += 1
        return coded_row(
            document.key,
            parts,
            texts,
            metadata=document.metadata,
            special=self._special,
            config=self._config,
        )


def _noted(
    documents: Iterable[Document | Reject],
    noted: dict[str, Document],
    rejects: list[Reject],
) -> Iterator[Document]:
    """Passes documents on, and keeps them without the bytes of their images."""
    for document in documents:
        if isinstance(document, Reject):
            rejects.append(document)
        else:
            noted[document.key] = _without_bytes(document)
            yield document


def _without_bytes(document: Document) -> Document:
    segments = tuple(
        segment if isinstance(segment, Text) else replace(segment, data=b"")
        for segment in document.segments
    )
    return replace(document, segments=segments)
