"""Everything that a run was made from, down to the raw input, in the order in which it was made."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.manifest import FileEntry, Manifest
from transfusion.artifacts.shards import REJECTS, ROWS
from transfusion.artifacts.tables import load_table


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One artifact of a lineage."""

    artifact: Artifact
    inputs: dict[str, str]
    """Role to the path of the artifact that filled it."""
    depth: int
    """Longest way down to an artifact without inputs."""
    missing: dict[str, str] = field(default_factory=dict)
    """Role to the path of an input that the store no longer has."""

    @property
    def manifest(self) -> Manifest:
        """Its record."""
        return self.artifact.manifest

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for file in self.manifest.content.files)

    @property
    def num_rows(self) -> int | None:
        """Of its tables, rejects apart; None when it has no tables."""
        return sum(file.rows or 0 for file in self.tables) if self.tables else None

    @property
    def tables(self) -> list[FileEntry]:
        """Its files that hold rows; of a shard's files the rows alone, not its rejects or its index."""
        tables = [file for file in self.manifest.content.files if file.path.endswith(".parquet")]
        return [file for file in tables if _table(file) == ROWS] or [
            file for file in tables if _table(file) != REJECTS
        ]


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that was turned away."""

    key: str
    reason: str
    detail: str


def trace(ends: Iterable[Artifact]) -> list[Ancestor]:
    """Every artifact that the given ones were made from, and they themselves; each once, inputs first.

    An input that the store has lost is named in `missing`: a report is also for stores that were cleaned up.
    """
    found: dict[str, Ancestor] = {}
    for artifact in ends:
        _visit(artifact, found)
    return list(found.values())


def _visit(artifact: Artifact, found: dict[str, Ancestor]) -> Ancestor:
    if artifact.path in found:
        return found[artifact.path]
    inputs, missing, depth = {}, {}, 0
    for role, reference in artifact.manifest.inputs.items():
        if reference.path not in found and not artifact.store.exists(
            f"{reference.path}/manifest.json"
        ):
            missing[role] = reference.path
            continue
        above = found.get(reference.path) or _visit(artifact.input(role), found)
        inputs[role] = reference.path
        depth = max(depth, above.depth + 1)
    made = Ancestor(artifact=artifact, inputs=inputs, depth=depth, missing=missing)
    found[artifact.path] = made
    return made


def rejected_rows(ancestor: Ancestor, *, limit: int) -> list[RejectedRow]:
    """The first rows that a stage turned away, by shard and key."""
    rows: list[RejectedRow] = []
    for file in ancestor.manifest.content.files:
        if len(rows) >= limit:
            break
        if not file.rows or _table(file) != REJECTS:
            continue
        table = load_table(ancestor.artifact.store, file).slice(0, limit - len(rows))
        rows += [
            RejectedRow(record["key"], record["reason"], record["detail"] or "")
            for record in table.select(["key", "reason", "detail"]).to_pylist()
        ]
    return rows


def source_shards(ancestor: Ancestor, *, limit: int) -> list[dict[str, Any]]:
    """The first shards of a listing: `identity` and `spec`, which names the raw file."""
    if ancestor.artifact.kind != "listing":
        return []
    table = load_table(ancestor.artifact.store, ancestor.tables[0])
    return table.slice(0, limit).to_pylist()


def _table(file: FileEntry) -> str:
    return file.name.rpartition("/")[2]
