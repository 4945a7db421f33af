"""The figures of a run over shards: what people are shown on the way and what the manifest keeps."""

import time
from collections import Counter

from transfusion.artifacts.pool import ShardRecord
from transfusion.artifacts.shards import REJECTS
from transfusion.errors import ArtifactError
from transfusion.stage import StageContext

MIN_ROWS = 1000
"""So many rows must have come in before a run is stopped for its rejects."""


class Tally:
    """Adds up finished shards, and stops a run of which too much is rejected."""

    def __init__(self, context: StageContext, unit: str) -> None:
        self._context, self._unit = context, unit
        self._started = time.monotonic()
        self._input = self._written = self._bytes = 0
        self._rejected: Counter[str] = Counter()
        self._busy_s = self._span_s = 0.0
        self._rejects_path = context.pool

    def found(self, record: ShardRecord) -> None:
        """Counts a shard that was there before."""
        self._input += record.outcomes.input
        self._rejected.update(record.outcomes.rejected)
        for entry in record.files:
            if entry.name == REJECTS and entry.rows:
                self._rejects_path = entry.path

    def made(self, record: ShardRecord, *, busy_s: float, span_s: float) -> None:
        """Counts a shard that this run made. Raises as `check` does."""
        self._written += record.outcomes.written
        self._bytes += sum(entry.bytes for entry in record.files)
        self._busy_s += busy_s
        self._span_s += span_s
        self.found(record)
        self.check()

    def check(self) -> None:
        """Looks at all rows so far: asked once of those that were there, whose order says nothing.

        Raises:
            ArtifactError: Too large a part of them was rejected.
        """
        rejected, most = self._rejected.total(), self._context.resources.pool.max_reject_fraction
        if self._input < MIN_ROWS or rejected <= most * self._input:
            return
        table = self._context.store.url(self._rejects_path)
        raise ArtifactError(
            f"{self._context.name}: {rejected:,} of the first {self._input:,} rows were rejected, more than "
            f"pool.max_reject_fraction {most:g}: {self._reasons()}. One of the tables that say which and why: "
            f"{table}. Mend the source or the limits, or raise the fraction in the profile"
        )

    def shown(self) -> dict[str, str]:
        """What stands beside the progress."""
        rate = self._written / self._seconds()
        shown = {self._unit: f"{self._written:,}", "a second": f"{rate:,.4g}"}
        if self._span_s:
            shown["encoder busy"] = f"{self._busy_s / self._span_s:.0%}"
        shown["written"] = _bytes(self._bytes)
        if self._rejected:
            shown["rejected"] = self._reasons()
        return shown

    def timings(self) -> dict[str, float]:
        """The same for the manifest; rejects by reason are among its outcomes."""
        timings = {
            self._unit: float(self._written),
            f"{self._unit} per second": round(self._written / self._seconds(), 2),
            "bytes written": float(self._bytes),
        }
        if self._span_s:
            timings["encoder busy share"] = round(self._busy_s / self._span_s, 4)
        return timings

    def _seconds(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self._rejected.most_common(4))


def _bytes(count: int) -> str:
    power = min(4, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
