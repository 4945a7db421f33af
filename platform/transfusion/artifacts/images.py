"""Kind `images`: pictures that a model drew, in the order of their prompts, the samples of a prompt side by side.

Metadata: `model`, the digest of the package that drew them, `image_size_px`, `num_samples` of each prompt. The
columns `image`, `prompt` and `key` are what `data_pipelines.sources.parquet_images` reads.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from transfusion.artifacts.artifact import Artifact, verified
from transfusion.artifacts.shards import row_entries
from transfusion.config import JSON

IMAGES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # `<prompt key>#<sample>`
        ("prompt_key", pa.string()),
        ("sample", pa.int32()),  # among those of its prompt, from 0
        ("prompt", pa.string()),
        ("metadata", pa.string()),  # JSON: what the source says of the prompt
        ("seed", pa.int64()),  # with which the sampler draws the same again
        ("image", pa.binary()),  # PNG
    ]
)
IMAGES_RAW = ("image",)

_ROWS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """One picture."""

    prompt_key: str
    sample: int
    prompt: str
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    seed: int
    image: bytes


def images_table(rows: Sequence[ImageRow]) -> pa.Table:
    """The rows of a shard, in their order."""
    return pa.table(
        {
            "key": [f"{row.prompt_key}#{row.sample}" for row in rows],
            "prompt_key": [row.prompt_key for row in rows],
            "sample": [row.sample for row in rows],
            "prompt": [row.prompt for row in rows],
            "metadata": [json.dumps(row.metadata) for row in rows],
            "seed": [row.seed for row in rows],
            "image": [row.image for row in rows],
        },
        schema=IMAGES_SCHEMA,
    )


def read_images(artifact: Artifact) -> Iterator[ImageRow]:
    """Every picture of an `images` artifact, in the order of the prompts; those of a row group are held at a time.

    Raises:
        ArtifactError: A file is gone or altered.
    """
    for entry in row_entries(artifact).values():
        file = pq.ParquetFile(verified(artifact.store, entry), page_checksum_verification=True)
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for record in batch.to_pylist():
                del record["key"]
                yield ImageRow(**record | {"metadata": json.loads(record["metadata"])})
