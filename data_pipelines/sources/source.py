"""What all sources share: a listing of shard descriptors, and a reader for each.

A source never copies its data. `list_shards(config)` runs when a job is planned and says which shards there are
and what decides their rows; `read(config, descriptor)` yields those rows wherever a later stage needs them.
The artifact of a source is its listing.
"""

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from data_pipelines.documents import Document, Rejected
from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.config import Config, suggestion
from transfusion.errors import SpecError
from transfusion.stage import Made, Stage, StageContext

if TYPE_CHECKING:
    from transfusion.artifacts.artifact import Artifact

LISTING = "listing"
"""The one file of a listing: a row a shard, with `identity`, `spec` (canonical JSON) and perhaps `metadata`."""


@dataclass(frozen=True, slots=True)
class ShardDescriptor:
    """One shard of a source: small, plain JSON, enough to read its rows."""

    identity: str
    """Changes exactly when the rows do; holds no place and no neighbour, so a growing source keeps it."""

    spec: Mapping[str, Any]
    """What `read` needs; paths are relative to the source's root."""

    metadata: str = ""
    """Changes when only the rows' metadata do: apart from `identity`, so that no image is encoded anew for it."""

    def to_json(self) -> dict[str, Any]:
        """The descriptor as plain JSON."""
        own = {"metadata": self.metadata} if self.metadata else {}
        return {"identity": self.identity, "spec": dict(self.spec), **own}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardDescriptor":
        """The descriptor that `to_json` wrote."""
        return cls(value["identity"], value["spec"], value.get("metadata", ""))


@runtime_checkable
class Source(Protocol):
    """What a source's module offers."""

    STAGE: Stage

    def list_shards(self, config: Config) -> list[ShardDescriptor]:
        """The shards there are now.

        Raises:
            ArtifactError: The place is missing or holds nothing to read.
        """

    def identities(self, config: Config) -> list[str]:
        """The shards' identities: what stands for the raw input in the listing's fingerprint."""

    def read(self, config: Config, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
        """The shard's rows, in a fixed order."""


@dataclass(frozen=True)
class Listing:
    """An opened listing: the shards of a source, and how to read them."""

    source: Source
    config: Config
    shards: Sequence[ShardDescriptor]

    def read(self, descriptor: ShardDescriptor) -> Iterator[Document | Rejected]:
        """The rows of one shard, in a fixed order."""
        return self.source.read(self.config, descriptor)


def identify(label: str, content: Any) -> str:
    """An identity from what decides the rows: a readable label and a digest."""
    return f"{label}:{fingerprint(content)}"


def source_module(uses: str) -> Source:
    """The module of the source that a job names in `uses`.

    Raises:
        SpecError: No source has this name.
    """
    known = list(SOURCES.values())
    if uses not in known:
        raise SpecError(f"{uses}: is no source of documents{suggestion(uses, known)}")
    return cast("Source", importlib.import_module(uses))


def run(config: Config, inputs: Mapping[str, "Artifact"], context: StageContext) -> Made:
    """Writes the listing of any source: the body of every source's stage.

    Raises:
        ArtifactError: There are other files now than when the job was planned.
    """
    import pyarrow as pa

    from data_pipelines.sources.growth import growth
    from transfusion.artifacts.tables import store_table

    del inputs
    shards = source_module(context.uses).list_shards(config)
    context.check_raw([shard.identity for shard in shards], what="raw input")
    columns = {
        "identity": pa.array([shard.identity for shard in shards], pa.string()),
        "spec": pa.array([canonical_json(shard.spec) for shard in shards], pa.large_string()),
    }
    if any(shard.metadata for shard in shards):
        columns["metadata"] = pa.array([shard.metadata for shard in shards], pa.string())
    table = pa.table(columns)
    context.log.info("%s shards", f"{len(shards):,}")
    changes = growth(shards, config, uses=context.uses, store=context.store)
    if changes is not None:
        context.log.info(changes)
    return Made(files=[store_table(context.store, f"{context.folder}/files", LISTING, table)])


def open_listing(artifact: "Artifact") -> Listing:
    """Opens a source's artifact. Paths come from the current job's config, so a moved folder is found."""
    from transfusion.artifacts.tables import load_table

    source = source_module(artifact.manifest.uses)
    values = artifact.config or artifact.manifest.config
    table = load_table(artifact.store, artifact.entry(LISTING))
    return Listing(
        source=source,
        config=source.STAGE.config.model_validate_json(json.dumps(values)),
        shards=[
            ShardDescriptor.from_json(row | {"spec": json.loads(row["spec"])})
            for row in table.to_pylist()
        ],
    )


SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "shapes": "data_pipelines.sources.shapes",
        "textures": "data_pipelines.sources.textures",
        "image_folder": "data_pipelines.sources.image_folder",
        "webdataset": "data_pipelines.sources.webdataset",
        "text": "data_pipelines.sources.text",
        "python_docs": "data_pipelines.sources.python_docs",
        "parquet_images": "data_pipelines.sources.parquet_images",
        "interleaved": "data_pipelines.sources.interleaved",
        "edits": "data_pipelines.sources.edits",
    }
)
"""Every source by its short name."""
