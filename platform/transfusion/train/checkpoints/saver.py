"""Saves checkpoints: at once, or from a copy in host memory while training goes on."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from transfusion.resources import TrainResources
from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.checkpoints.record import StoredFile
from transfusion.train.spikes import SpikeMemory

log = logging.getLogger(__name__)


class Saver:
    """The saves of one attempt, one after the other; at most one is under way. For all ranks, together.

    In the background the ranks agree over a group of their own: messages of two threads in one group would
    meet the wrong ones. A failed save is raised by the next call, never kept back.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        attempt: str,
        earlier: Sequence[StoredFile],
        resources: TrainResources,
    ) -> None:
        self._checkpoints = checkpoints
        self._attempt = attempt
        self.stored = list(earlier)
        """Files of metrics up to the last save that is over."""
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[list[StoredFile]] | None = None
        if resources.checkpoint_async:
            timeout = timedelta(seconds=resources.collective_timeout_s)
            self._group = dist.new_group(backend="gloo", timeout=timeout)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
            # Buffers are kept from save to save: pinning memory costs more than the copy.
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=on_gpu,
                    use_shared_memory=False,
                    use_async_staging=False,
                    use_non_blocking_copy=on_gpu,
                )
            )

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        rows: bytes,
        skipped: Sequence[int],
        spikes: SpikeMemory,
        needed_from: int | None,
    ) -> None:
        """Saves, or copies and begins to save; waits for the save before.

        Args:
            rows: Lines of metrics since the save before.
            skipped: Steps without an update up to this one.
            needed_from: Checkpoints of this step and later are not deleted.
        """
        self.wait()
        about: dict[str, Any] = {
            "step": step,
            "attempt": self._attempt,
            "rows": rows,
            "earlier": self.stored,
            "skipped": list(skipped),
            "spikes": spikes,
            "needed_from": needed_from,
        }
        if self._thread is None:
            self.stored = self._checkpoints.save(dict(state), **about)
            return
        copy = self._stager.stage(dict(state))
        assert isinstance(copy, dict)
        self._pending = self._thread.submit(
            self._checkpoints.save, copy, **about, group=self._group
        )

    def check(self) -> None:
        """Raises what a save in the background failed with; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save that is under way, if there is one, and raises what it failed with."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self.stored = pending.result()

    def close(self) -> None:
        """Ends the thread after the save that is under way; what that fails with is told, not raised."""
        if self._thread is None:
            return
        self._thread.shutdown(wait=True)
        if self._pending is not None and (error := self._pending.exception()) is not None:
            log.warning("a checkpoint was not saved: %s: %s", type(error).__name__, error)
        self._stager.close()
        dist.destroy_process_group(self._group)
