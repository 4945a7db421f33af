"""What is done about shards that fail: the run ends, or it goes on without them."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfusion.artifacts.canonical import canonical_json
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.publish import publish_bytes
from transfusion.errors import ArtifactError, StoreUnavailableError
from transfusion.stage import StageContext

if TYPE_CHECKING:
    from data_pipelines.shards import Attempt

MAX_OUTAGE_S = 900.0
"""A store may be away for so long without one shard made: then the run ends, rather than let every shard that is
left wait for it."""


class Failures:
    """The failures of one run."""

    def __init__(self, context: StageContext, max_quarantined: int) -> None:
        self._context, self._max_quarantined = context, max_quarantined
        self._away_since: float | None = None
        self._errors: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        """Identities of the shards that are set aside, by the shard's id."""

    def note(self, failed: "Attempt") -> None:
        """Looks at a failure as it comes in.

        Raises:
            StoreUnavailableError: The store has been away for too long, or refuses us.
        """
        if not failed.outage:
            return
        if failed.final:
            raise self._outage(failed)
        if self._away_since is None:
            self._away_since = time.monotonic()
        elif time.monotonic() - self._away_since > MAX_OUTAGE_S:
            raise self._outage(failed)

    def none(self) -> None:
        """Notes that a shard was made."""
        self._away_since = None

    def set_aside(self, lost: Sequence["Attempt"]) -> None:
        """Takes shards out of the run for good.

        Raises:
            ArtifactError: There are more than may be; names one and its error.
            StoreUnavailableError: An outage is why one of them failed.
        """
        for failed in lost:
            if failed.outage:
                raise self._outage(failed)
            self.quarantined[failed.task.shard_id] = failed.task.descriptor.identity
            self._errors[failed.task.shard_id] = failed.error
        if len(self.quarantined) > self._max_quarantined:
            raise ArtifactError(f"{self._context.name}: {self._told()}")

    def told(self) -> FileEntry | None:
        """Tells of the shards that are set aside: one in the log, each with its error in a file."""
        if not self.quarantined:
            return None
        self._context.log.warning(
            f"going on without {len(self.quarantined):,} shards: {self._told()}"
        )
        data = canonical_json(
            {
                shard_id: {"shard": identity, "error": self._errors[shard_id]}
                for shard_id, identity in self.quarantined.items()
            }
        ).encode()
        entry = publish_bytes(
            self._context.store, f"{self._context.pool}/quarantined", "quarantined.json", data
        )
        return entry.model_copy(update={"digest": None})

    def _outage(self, failed: "Attempt") -> StoreUnavailableError:
        identity = failed.task.descriptor.identity
        return StoreUnavailableError(
            f"{self._context.name}: at shard {identity}: {failed.error}; what is made stays"
        )

    def _told(self) -> str:
        shard_id, identity = next(iter(self.quarantined.items()))
        others = len(self.quarantined) - 1
        more = f" (and {others} more)" if others else ""
        return f"shard {identity}: {self._errors[shard_id]}{more}"
