"""A store that goes away while a source reads: told as an outage with bucket and key, never as bad data."""

import base64
import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.documents import Document, Rejected
from data_pipelines.shards import ShardTask, attempt_shard
from data_pipelines.sources.source import SOURCES, ShardDescriptor, source_module
from tests.data_pipelines.tars import tar_bytes
from tests.s3 import serve_s3
from tests.s3_proxy import Proxy, Rule, faulty
from transfusion.artifacts.pool import ShardRecord
from transfusion.config import validate

NUM_ROWS = 30
"""Of a megabyte each: four spans of a file, of which two are there when it is cut off."""


def blobs() -> Iterator[bytes]:
    for number in range(NUM_ROWS):
        yield random.Random(number).randbytes(2**20)


def write_tar(place: Path) -> None:
    members = [(f"{n:03d}.jpg", blob) for n, blob in enumerate(blobs())]
    captions = [(f"{n:03d}.txt", b"said") for n in range(NUM_ROWS)]
    pairs = [part for pair in zip(members, captions, strict=True) for part in pair]
    place.write_bytes(tar_bytes(list(pairs)))


def write_lines(place: Path) -> None:
    texts = [base64.b64encode(blob[: 3 * 2**18]).decode() for blob in blobs()]
    data = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    # Stored, not deflated: as many bytes as before.
    place.write_bytes(gzip.compress(data, 0) if place.suffix == ".gz" else data)


def write_parquet(place: Path) -> None:
    table = pa.table({"image": list(blobs()), "text": ["said"] * NUM_ROWS})
    pq.write_table(table, place, row_group_size=2, compression="none")


FILES: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "tar": ("webdataset", "a.tar", write_tar),
    "jsonl": ("text", "b.jsonl", write_lines),
    "gz": ("text", "c.jsonl.gz", write_lines),
    "parquet": ("parquet_images", "d.parquet", write_parquet),
}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Proxy, dict[str, str]]]:
    root = tmp_path_factory.mktemp("s3")
    (root / "bucket").mkdir()
    for _, name, write in FILES.values():
        write(root / "bucket" / name)
    with serve_s3(root) as environment, faulty(environment["AWS_ENDPOINT_URL"]) as running:
        changed = {"AWS_ENDPOINT_URL": running.address, "XDG_CACHE_HOME": str(root / "lists")}
        yield running, environment | changed


def rows(source: str, **config: Any) -> Iterator[Document | Rejected]:
    module = source_module(SOURCES[source])
    made, faults = validate(module.STAGE.config, config, where="config")
    assert made is not None, faults
    for shard in module.list_shards(made):
        yield from module.read(made, shard)


@pytest.mark.parametrize("kind", FILES)
def test_an_outage_in_the_middle_of_a_file_is_no_bad_data(
    kind: str, served: tuple[Proxy, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, environment = served
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("TRANSFUSION_S3_PATIENCE_S", "0.1")
    source, name, _ = FILES[kind]
    seen: list[Document | Rejected] = []

    class Reads:
        def make(self, task: ShardTask) -> ShardRecord:
            for row in rows(source, path="s3://bucket/" + name):
                seen.append(row)
                proxy.rules.append(Rule("reset", "GET", name, times=1000))
            raise AssertionError("the file was read to its end")

    try:
        told = attempt_shard(Reads(), ShardTask("key", "id", ShardDescriptor("shard:0", {})))
    finally:
        proxy.rules.clear()
    assert told.outage, told.error
    assert f"s3://bucket/{name}: could not read" in told.error
    assert 0 < len(seen) < NUM_ROWS
    assert all(isinstance(row, Document) for row in seen)
