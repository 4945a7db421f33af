"""Checkpoints: files of an attempt, then a record, created last. A step without a record does not exist.

    checkpoints/step-000100.json                  the record: which attempt, every file with size and sha256
    checkpoints/data/<attempt>/step-000100/...    DCP files, one or more a rank
    checkpoints/metrics/<attempt>/...             rows of metrics since the checkpoint before
    checkpoints/reading/<id>.json                 a note of who loads which step
    checkpoints/refused/000100.json               a record that did not fit its files, or of another run

Attempts never share files, so a driver that is gone but not yet dead cannot tear what a new one writes. A
record that does not fit its files is set aside at load time and the one before it is used. What somebody has
noted to be reading is not deleted.
DCP's `.metadata` is a pickle: it is checked against the record of the same run, and no other stage reads it.
"""

import hashlib
import json
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, sha256_file
from transfusion.train.agreement import agreed
from transfusion.train.checkpoints.reading import StoreReader
from transfusion.train.checkpoints.record import (
    FORMAT,
    CheckpointRecord,
    OtherFormatError,
    StoredFile,
    other_format,
)
from transfusion.train.checkpoints.verifying import Verifier
from transfusion.train.spikes import SpikeMemory

log = logging.getLogger(__name__)

READ_WITHIN_S = 3600.0
"""A note of reading that is older was left by a process that died."""


class Checkpoints:
    """The checkpoints of one run. `save` and `load` are called by every rank, together."""

    def __init__(
        self, store: Store, folder: str, *, fingerprint: str, keep: int, scratch: Path
    ) -> None:
        assert keep >= 1, keep
        self._store = store
        self._folder = f"{folder}/checkpoints"
        self._fingerprint = fingerprint
        self._keep = keep
        self._scratch = scratch
        self._verifier = Verifier(store)
        self._note = f"{self._folder}/reading/{uuid.uuid4().hex}.json"
        self._swept = False

    def save(
        self,
        state: dict[str, Any],
        *,
        step: int,
        attempt: str,
        rows: bytes,
        earlier: list[StoredFile],
        skipped: Sequence[int] = (),
        spikes: SpikeMemory | None = None,
        needed_from: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> list[StoredFile]:
        """Writes and commits a checkpoint; returns the metrics files up to this step.

        Args:
            rows: Lines of metrics since the last checkpoint (of rank 0; ignored on the others).
            earlier: Metrics files of the checkpoint that this one follows.
            needed_from: Checkpoints of this step and later are kept, however many they are.
            group: Over which the ranks agree; one of its own where training goes on meanwhile.
        """
        place = f"{self._folder}/data/{attempt}/step-{step:06d}"
        with tempfile.TemporaryDirectory(dir=self._scratch) as staging:
            # Staged files are copied, and flushed there; flushing them here too would double the wait. To copy
            # ahead is to wait for a GPU's stream: for all of a training beside, though the state is on the host.
            writer = FileSystemWriter(staging, sync_files=False, per_thread_copy_ahead=0)
            save(state, storage_writer=writer, process_group=group)
            mine = [
                self._put(f"{place}/{source.name}", source)
                for source in sorted(Path(staging).iterdir())
            ]
        everyone: list[list[StoredFile]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine, group=group)
        metrics = list(earlier)
        if dist.get_rank() == 0:
            if rows:
                path = f"{self._folder}/metrics/{attempt}/until-{step:06d}.jsonl"
                self._store.write(path, rows)
                digest = hashlib.sha256(rows).hexdigest()
                metrics.append(StoredFile(path=path, sha256=digest, bytes=len(rows)))
            self._commit(
                CheckpointRecord(
                    fingerprint=self._fingerprint,
                    step=step,
                    attempt=attempt,
                    world_size=dist.get_world_size(),
                    files=[file for part in everyone for file in part],
                    metrics=metrics,
                    skipped=list(skipped),
                    spikes=spikes or SpikeMemory(),
                )
            )
            self._retain(needed_from)
            if not self._swept:
                self._sweep(attempt)
                self._swept = True
        return metrics

    def newest(self, among: Collection[int] | None = None) -> CheckpointRecord | None:
        """The newest checkpoint that is whole, or None; for all ranks, together.

        Each rank reads a part of the files: its own, which it will load, where as many ranks wrote them. A
        checkpoint stays where it is until `load` has read it.

        Args:
            among: Steps to choose from; all there are when left out.

        Raises:
            ArtifactError: On all ranks: a file cannot be read, which says nothing of what is in it.
            OtherFormatError: On all ranks: the newest is of another version's format.
        """
        for step in agreed(partial(self._steps_down, among)):
            record, faults, data = agreed(partial(self._look, step))
            if record is not None:
                faults = self._verifier.altered_of_all(record.files)
                if not faults:
                    return agreed(partial(self._with_whole_rows, record))
            agreed(partial(self._refuse, step, faults[0], data))
        return None

    def load(self, state: dict[str, Any], record: CheckpointRecord) -> None:
        """Fills `state` in place from a checkpoint, whatever number of ranks wrote it."""
        load(
            state,
            storage_reader=StoreReader(self._store, record.files, checked=self._verifier.checked),
        )
        dist.barrier()
        if dist.get_rank() == 0:
            self._store.delete(self._note)

    def rows(self, metrics: Sequence[StoredFile]) -> bytes:
        """The lines of metrics in these files."""
        return b"".join(self._store.read(file.path) for file in metrics)

    def steps(self) -> list[int]:
        """Steps that have a record, whole or not, ascending."""
        names = (Path(entry.path) for entry in self._store.list(self._folder))
        found = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in names)
        return sorted(int(match.group(1)) for match in found if match)

    def _put(self, path: str, source: Path) -> StoredFile:
        self._store.put_file(path, source)
        return StoredFile(path=path, sha256=sha256_file(source), bytes=source.stat().st_size)

    def _record_path(self, step: int) -> str:
        return f"{self._folder}/step-{step:06d}.json"

    def _commit(self, record: CheckpointRecord) -> None:
        faults = self._verifier.missing([*record.files, *record.metrics])
        if faults:
            raise ArtifactError(
                f"checkpoint of step {record.step} did not arrive whole: {faults[0]}"
            )
        data = record.sealed().model_dump_json(indent=1).encode()
        if not self._store.create(self._record_path(record.step), data):
            # Another driver was first: its checkpoint is as good, and ours is only space.
            log.info("step %d has a checkpoint already; this one is dropped", record.step)
            self._drop_files(record)

    def _retain(self, needed_from: int | None) -> None:
        """Deletes what is beyond the newest ones: the record first, so that none is ever half there.

        Runs only after the newest was committed and checked, so that a whole one always stays. What is being
        read stays too; a later checkpoint takes it along.
        """
        read = self._being_read()
        for step in self.steps()[: -self._keep]:
            if step in read or (needed_from is not None and step >= needed_from):
                continue
            record = self._read(step)
            self._store.delete(self._record_path(step))
            if record is not None:
                self._drop_files(record)

    def _sweep(self, attempt: str) -> None:
        """Deletes what earlier attempts left without a record: killed in a save, or refused.

        A driver that is gone but not yet dead may still be writing there: it finds its files missing and commits
        nothing.
        """
        records = [self._read(step) for step in self.steps()]
        if None in records:
            return  # Whose files those are cannot be known.
        kept = {file.path for record in records if record for file in record.files}
        mine = f"{self._folder}/data/{attempt}/"
        for entry in self._store.list(f"{self._folder}/data"):
            if entry.path not in kept and not entry.path.startswith(mine):
                self._store.delete(entry.path)

    def _read(self, step: int) -> CheckpointRecord | None:
        """A record; None where it is none."""
        try:
            return CheckpointRecord.model_validate_json(self._store.read(self._record_path(step)))
        except (ArtifactError, ValidationError):
            return None

    def _drop_files(self, record: CheckpointRecord) -> None:
        for file in record.files:
            self._store.delete(file.path)

    def _being_read(self) -> set[int]:
        """Steps that somebody has noted to be loading."""
        found = set()
        for entry in self._store.list(f"{self._folder}/reading"):
            try:
                note = json.loads(self._store.read(entry.path))
                if float(note["at"]) + READ_WITHIN_S > time.time():
                    found.add(int(note["step"]))
            except (ArtifactError, ValueError, KeyError, TypeError) as error:
                log.debug("%s is no note: %s", entry.path, error)
        return found

    def _steps_down(self, among: Collection[int] | None) -> list[int]:
        return [step for step in reversed(self.steps()) if among is None or step in among]

    def _look(self, step: int) -> tuple[CheckpointRecord | None, list[str], bytes]:
        """A record whose files are all there, or what is wrong with it; and the record as it stands there.

        Raises:
            OtherFormatError: Passed over, the run would begin again unasked.
        """
        # Before it is looked at, so that no other driver deletes it in between.
        self._store.write(self._note, json.dumps({"step": step, "at": round(time.time())}).encode())
        path = self._record_path(step)
        data = self._store.read(path)
        if other := other_format(data):
            self._store.delete(self._note)
            raise OtherFormatError(
                f"{self._store.url(path)} is of format {other}, and this version reads {FORMAT}: go on with the "
                "version that wrote it, or delete the run's checkpoints to begin again"
            )
        try:
            record = CheckpointRecord.model_validate_json(data)
        except ValidationError as error:
            return None, [str(error.errors()[0]["msg"])], data
        if record.fingerprint != self._fingerprint:
            faults = [f"is of run {record.fingerprint[:16]}, not {self._fingerprint[:16]}"]
        else:
            faults = record.faults(step=step) or self._verifier.missing(record.files)
        return (None if faults else record), faults, data

    def _refuse(self, step: int, fault: str, data: bytes) -> None:
        path = self._record_path(step)
        log.warning(
            "checkpoint of step %d is not used: %s: %s; the one before it is taken",
            step,
            self._store.url(path),
            fault,
        )
        # Its name must be free again, or this step could never be committed.
        self._store.write(f"{self._folder}/refused/{step:06d}.json", data)
        self._store.delete(path)
        self._store.delete(self._note)

    def _with_whole_rows(self, record: CheckpointRecord) -> CheckpointRecord:
        """With those files of rows that are as they were written; a lost curve is no reason to train again."""
        return record.model_copy(update={"metrics": self._verifier.whole(record.metrics)})
