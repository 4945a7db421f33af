"""The manifest: an artifact exists when its manifest does, and the manifest is created last.

`content` is what was made and is covered by `digest`; `provenance` and `timings` tell how, and are not.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from transfusion.artifacts.canonical import fingerprint
from transfusion.errors import ArtifactError

SCHEMA = "transfusion.artifact/1"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(_Record):
    """One file of an artifact."""

    name: str
    """What readers ask for, such as `model.safetensors`, or a shard's key."""
    path: str
    """Where it lies, relative to the store."""
    sha256: str
    bytes: int
    rows: int | None = None
    digest: str | None = None
    """Digest of the logical content; None for pages and logs, which the artifact's digest leaves out."""


class Outcomes(_Record):
    """What became of every input row: written, filtered or rejected, the last two by reason."""

    input: int = 0
    written: int = 0
    filtered: dict[str, int] = {}
    rejected: dict[str, int] = {}

    def check(self, what: str) -> None:
        """Raises ArtifactError unless the outcomes add up to the input."""
        total = self.written + sum(self.filtered.values()) + sum(self.rejected.values())
        if total != self.input:
            raise ArtifactError(
                f"{what}: {self.input} rows came in but {total} are accounted for: {self}"
            )

    def __add__(self, other: "Outcomes") -> "Outcomes":
        def merged(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
            return {key: a.get(key, 0) + b.get(key, 0) for key in sorted({*a, *b})}

        return Outcomes(
            input=self.input + other.input,
            written=self.written + other.written,
            filtered=merged(self.filtered, other.filtered),
            rejected=merged(self.rejected, other.rejected),
        )


class Content(_Record):
    """What was made: the part that two runs of the same stage must agree on."""

    kind: str
    files: list[FileEntry]
    outcomes: Outcomes | None = None
    metadata: dict[str, Any] = {}
    """Constants of this kind that readers need, such as a latent's channels."""
    metrics: dict[str, float] = {}
    """Results, such as an accuracy; never a duration."""

    def digest(self) -> str:
        """Digest of logical rows, outcomes and tensors; where files lie and how they are packed is outside."""
        files = sorted((file.name, file.digest, file.rows) for file in self.files if file.digest)
        return fingerprint(
            {
                "kind": self.kind,
                "files": [list(file) for file in files],
                "outcomes": self.outcomes.model_dump() if self.outcomes else None,
                "metadata": self.metadata,
                "metrics": self.metrics,
            }
        )


class InputRef(_Record):
    """An input artifact, by identity and place."""

    fingerprint: str
    path: str


class Manifest(_Record):
    """The record that makes an artifact exist."""

    format: str = SCHEMA
    stage: str
    """The name that the job gave the stage: for people; not part of the identity."""
    uses: str
    version: int
    fingerprint: str
    payload: dict[str, Any]
    """What the fingerprint was taken over."""
    config: dict[str, Any]
    inputs: dict[str, InputRef]
    content: Content
    digest: str
    timings: dict[str, float] = {}
    provenance: dict[str, Any] = {}


def artifact_path(uses: str, fingerprint_: str) -> str:
    """The folder of an artifact, relative to the store."""
    return f"{uses}/{fingerprint_[:16]}"


def manifest_path(uses: str, fingerprint_: str) -> str:
    """The manifest of an artifact, relative to the store."""
    return f"{artifact_path(uses, fingerprint_)}/manifest.json"
