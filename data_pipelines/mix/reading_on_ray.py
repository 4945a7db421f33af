"""The reading of the index tables as a Ray Data job: rows are shards side by side, results columns of numbers.

A task reads the tables of its shards and sends back one row, in which each column of their documents is a list.
Reading changes nothing, so what a lost worker had begun is done again by another.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa

from data_pipelines.mix.candidates import OWN_COLUMNS, Candidates, joined, with_arrays
from data_pipelines.mix.choice import ShardChoice, ShardPlace
from data_pipelines.mix.documents import Documents
from data_pipelines.mix.side_by_side import in_threads
from data_pipelines.ray_settings import set_on_purpose
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import REJECTS_SCHEMA
from transfusion.errors import ArtifactError
from transfusion.stage import StageContext

MAX_SHARDS, MAX_DOCUMENTS = 64, 250_000
"""Of a task. A task costs the driver 4 ms of CPU, so there are not as many as shards: of 40,000 shards of 10,000
documents 1,600. So many documents are 16 MB, of which a task holds three copies at most."""

_TYPES = {
    "shard": pa.int32(), "row": pa.int32(), "start": pa.int32(), "length": pa.int32(), "closes": pa.bool_(),
    "text_tokens": pa.int32(), "images": pa.int32(), "copied": pa.int32(), "is_pair": pa.bool_(),
    "identity": pa.uint64(), "phases": pa.uint16(), "is_held_out": pa.bool_(), "held_out_number": pa.uint64(),
    "later_images": pa.uint64(), "later_owner": pa.int64(), "takedown_found": pa.int32(),
    "content": pa.uint64(), "phash": pa.uint64(), "has_phash": pa.bool_(),
}  # fmt: skip
assert set(_TYPES) == {*(field.name for field in fields(Documents)), *OWN_COLUMNS}

_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("error", pa.string()),  # why the shards could not be read; then all others are null
        ("values", pa.string()),  # JSON: what is no column
        ("rejects", pa.large_list(pa.struct(list(REJECTS_SCHEMA)))),
        *((name, pa.large_list(kind)) for name, kind in _TYPES.items()),
    ]
)


def read_on_ray(
    choice: ShardChoice, places: Sequence[ShardPlace], context: StageContext
) -> Iterator[tuple[str, Candidates]]:
    """Documents of some shards of a source, with its name, as they are read.

    Raises:
        ArtifactError: A table is gone or altered.
    """
    import ray.data

    settings = ray.data.DataContext.get_current()
    set_on_purpose(settings)
    # A task is read in seconds, and one that kills its worker is begun again without end: so the job ends when
    # nothing was read for so long.
    settings.execution_no_progress_timeout_s = 1800
    rows = [{"shards": _to_json(batch)} for batch in _batches(places)]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _read, batch_size=1, batch_format="pyarrow", num_cpus=1, fn_kwargs={"choice": choice}
    )
    with context.progress(total=len(places), unit="shards read") as progress:
        for table in results.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for row in range(len(table)):
                name, part = _from_row(table.slice(row, 1))
                progress.advance(part.num_shards)
                yield name, part


def _batches(places: Sequence[ShardPlace]) -> Iterator[list[ShardPlace]]:
    """Shards side by side of one source, some for each task."""
    batch: list[ShardPlace] = []
    documents = 0
    for place in places:
        own = place.tokens.rows or 0
        full = len(batch) == MAX_SHARDS or documents + own > MAX_DOCUMENTS
        if batch and (full or batch[0].source != place.source):
            yield batch
            batch, documents = [], 0
        batch.append(place)
        documents += own
    yield batch


def _read(batch: pa.Table, choice: ShardChoice) -> pa.Table:
    """Columns in: `shards` str JSON. Columns out: those of `_SCHEMA`."""
    [text] = batch["shards"].to_pylist()
    places = _from_json(text)
    try:
        parts = list(in_threads(choice.read, places))
    except ArtifactError as error:
        return pa.Table.from_pylist([{"error": str(error)}], schema=_SCHEMA)
    return _to_row(places[0].source, joined(parts, range(places[0].shard, places[-1].shard + 1)))


def _to_row(source: str, part: Candidates) -> pa.Table:
    values = {
        "first_shard": part.first_shard,
        "num_shards": part.num_shards,
        "num_documents": part.num_documents,
        "filtered": part.filtered,
        "columns": sorted(part.columns),
    }
    arrays = part.arrays()
    columns = [
        pa.array([source]),
        pa.array([None], pa.string()),
        pa.array([json.dumps(values)]),
        _one_list(part.rejects.to_struct_array().combine_chunks()),
        *(_one_list(pa.array(arrays[name], kind)) for name, kind in _TYPES.items()),
    ]
    return pa.table(columns, schema=_SCHEMA)


def _from_row(row: pa.Table) -> tuple[str, Candidates]:
    [source], [error], [text] = (row[name].to_pylist() for name in ("source", "error", "values"))
    if error is not None:
        raise ArtifactError(error)
    values = json.loads(text)
    columns = frozenset(values.pop("columns"))
    rejects = pa.Table.from_struct_array(_flat(row["rejects"]))
    # Copied out of the object store, which may then let go of the row.
    arrays = {name: _numbers(row[name]) for name in _TYPES}
    return source, with_arrays(arrays, rejects=_copied(rejects), columns=columns, **values)


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return _flat(column).to_numpy(zero_copy_only=False).copy()


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().flatten()


def _copied(table: pa.Table) -> pa.Table:
    return pa.Table.from_pydict(table.to_pydict(), schema=table.schema)


def _to_json(places: Sequence[ShardPlace]) -> str:
    return json.dumps(
        [
            [
                place.source,
                place.shard,
                *(entry and entry.model_dump() for entry in (place.tokens, place.latents)),
            ]
            for place in places
        ]
    )


def _from_json(text: str) -> list[ShardPlace]:
    return [
        ShardPlace(
            source,
            shard,
            FileEntry.model_validate(tokens),
            FileEntry.model_validate(latents) if latents else None,
        )
        for source, shard, tokens, latents in json.loads(text)
    ]
