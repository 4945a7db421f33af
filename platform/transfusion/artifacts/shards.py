"""What every kind that is made of shards has in common: names of its files, and the table of rejects.

A shard is the files `<shard id>/rows`, `<shard id>/rejects` and, where a mixture is planned from it,
`<shard id>/index`: the columns that a plan needs, so that planning reads no latents. The id belongs to the
shard of the listing, so shards of one listing carry the same names in `pixels`, `latents` and `tokens`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.tables import load_table

ROWS = "rows"
INDEX = "index"
REJECTS = "rejects"

REJECTS_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that came in and was not written."""

    key: str
    """The document, with file and line or image where that says more."""
    reason: str
    """A short name that is counted."""
    detail: str


def rejects_table(rejects: Sequence[Reject]) -> pa.Table:
    """The rejects of a shard, sorted by key."""
    rows = sorted(rejects, key=lambda reject: (reject.key, reject.reason, reject.detail))
    return pa.table(
        {
            "key": [_plain(reject.key) for reject in rows],
            "reason": [reject.reason for reject in rows],
            "detail": [_plain(reject.detail) for reject in rows],
        },
        schema=REJECTS_SCHEMA,
    )


def _plain(text: str) -> str:
    """Text that UTF-8 can hold: file names may carry undecodable bytes as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def row_entries(artifact: Artifact) -> dict[str, FileEntry]:
    """The files with rows by shard id, in the order of the listing."""
    return _entries(artifact, ROWS)


def index_entries(artifact: Artifact) -> dict[str, FileEntry]:
    """The files that a plan is made from by shard id, in the order of the listing."""
    return _entries(artifact, INDEX)


def read_rejects(artifact: Artifact) -> pa.Table:
    """Every rejected row of an artifact: columns key, reason, detail."""
    entries = _entries(artifact, REJECTS).values()
    tables = [load_table(artifact.store, entry) for entry in entries if entry.rows]
    return pa.concat_tables(tables) if tables else REJECTS_SCHEMA.empty_table()


def _entries(artifact: Artifact, table: str) -> dict[str, FileEntry]:
    found = {}
    for entry in artifact.manifest.content.files:
        shard_id, _, name = entry.name.partition("/")
        if name == table:
            found[shard_id] = entry
    return found


def count_reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    """How many rows each reason took."""
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))
