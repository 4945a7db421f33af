"""Trains the tokenizer on a sample of the listings' text, or takes in a user's."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipelines.documents import Document, Text
from data_pipelines.sources.source import open_listing
from data_pipelines.tokenizer.config import TokenizerConfig
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.publish import publish_bytes
from transfusion.stage import Made, StageContext
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer
from transfusion.tokenizer.training import train_tokenizer


def run(config: TokenizerConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """The body of the stage."""
    if config.path is not None:
        tokenizer = Tokenizer.load(Path(config.path).expanduser())
    else:
        tokenizer = train_tokenizer(
            _sample(config, inputs),
            vocab_size=config.vocab_size,
            algorithm=config.algorithm,
            character_coverage=config.character_coverage,
        )
    context.log.info(f"{tokenizer.num_pieces:,} pieces")
    file = publish_bytes(context.store, f"{context.folder}/files", MODEL, tokenizer.model)
    return Made(files=[file], metadata={"num_pieces": tokenizer.num_pieces})


def _sample(config: TokenizerConfig, inputs: Mapping[str, Artifact]) -> Iterator[str]:
    """Text of every input up to its share, the same bytes in every run."""
    max_bytes = config.max_training_mib * 2**20 / len(inputs)
    max_documents = config.max_documents // len(inputs)
    for role in sorted(inputs):
        num_bytes = 0
        for document in itertools.islice(_documents(inputs[role]), max_documents):
            if num_bytes >= max_bytes:
                break
            for segment in document.segments:
                if isinstance(segment, Text):
                    num_bytes += len(segment.text.encode())
                    yield segment.text


def _documents(listing: Artifact) -> Iterator[Document]:
    opened = open_listing(listing)
    for descriptor in opened.shards:
        for document in opened.read(descriptor):
            if isinstance(document, Document):
                yield document
