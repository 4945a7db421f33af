"""What makes a checkpoint exist: the record of its files, created last."""

import hashlib
import re

from pydantic import BaseModel, ConfigDict

from transfusion.errors import ArtifactError
from transfusion.train.spikes import SpikeMemory

FORMAT = "transfusion.checkpoint/2"


class OtherFormatError(ArtifactError):
    """A checkpoint of another version's format."""


def other_format(record: bytes) -> str | None:
    """The format of a record, where it is one of ours and not this version's; looked for before any schema."""
    found = re.search(rb'"format":\s*"(transfusion\.checkpoint/\d+)"', record)
    return found.group(1).decode() if found and found.group(1).decode() != FORMAT else None


class StoredFile(BaseModel):
    """A file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Relative to the store."""
    sha256: str
    bytes: int


class CheckpointRecord(BaseModel):
    """What makes a checkpoint exist."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: str = FORMAT
    fingerprint: str
    """Of the stage: a record of another identity is refused."""
    step: int
    """Updates that the weights have had; also the position in the data: the next step to run."""
    attempt: str
    world_size: int
    files: list[StoredFile]
    metrics: list[StoredFile]
    """All rows up to this step, one file a checkpoint on the way here."""
    skipped: list[int] = []
    """Steps up to this one that made no update, counted from 0."""
    spikes: SpikeMemory = SpikeMemory()
    """What verdicts on later steps depend on, and the stretches of steps that were passed over by going back."""

    digest: str = ""
    """sha256 of everything else here."""

    def sealed(self) -> "CheckpointRecord":
        """With its digest."""
        return self.model_copy(update={"digest": self._digest()})

    def faults(self, *, step: int) -> list[str]:
        """What shows that the record is not as it was written, under the name of a step."""
        if self.digest != self._digest():
            return ["the record was altered: its sha256 is another"]
        if self.step != step:
            return [f"the record is of step {self.step}: it was renamed"]
        return []

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"digest"}).encode()).hexdigest()
