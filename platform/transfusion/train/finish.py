"""From the first step to the result's files, on every rank. Plain torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.publish import publish_folder
from transfusion.resources import TrainResources
from transfusion.storage.store import Store, sha256_file
from transfusion.train.agreement import first_alone
from transfusion.train.faults import fault_name, rewind_name
from transfusion.train.loop import PREVIEWS, Place, Tell, fit
from transfusion.train.metrics import MARKS, Row, Tracker, as_lines, last_values, values_digest
from transfusion.train.scratch import scratch_folder
from transfusion.train.tracking import make_tracker
from transfusion.train.trainee import Trainee

METRICS_NAME = "metrics.jsonl"


def run_to_end(
    trainee: Trainee,
    *,
    store: Store,
    folder: str,
    fingerprint: str,
    name: str,
    scratch: Path,
    tracking: str,
    tell: Tell,
    resources: TrainResources | None = None,
    stop: Callable[[], bool] = lambda: False,
    save: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains, writes the result and stores it; returns files, metadata, metrics and timings as plain JSON."""

    def tracker() -> Tracker | None:
        return make_tracker(
            tracking,
            run_id=fingerprint[:16],
            name=name,
            config=trainee.config.resolved(),
            store=store,
            folder=folder,
        )

    finished = fit(
        trainee,
        place=Place(store=store, folder=folder, fingerprint=fingerprint, scratch=scratch),
        tell=tell,
        tracker=tracker,
        resources=resources,
        stop=stop,
        save=save,
    )
    with scratch_folder(scratch) as result:
        written = trainee.write(Path(result), averaged=finished.averaged)
        files = first_alone(lambda: _publish(Path(result), finished.rows, store, folder))
    if files is None:
        return {}
    return {
        "files": [file.model_dump(mode="json") for file in files],
        "metadata": written.metadata,
        "metrics": {**last_values(finished.rows), **_totals(finished.rows), **written.metrics},
        "timings": _rates(finished.rows),
    }


def _publish(result: Path, rows: list[Row], store: Store, folder: str) -> list[FileEntry]:
    """Stores the result's files and the run's rows; with them what was stored on the way."""
    (result / METRICS_NAME).write_bytes(as_lines(rows))
    files = [
        # Durations differ from run to run: the digest is over steps and values.
        entry.model_copy(update={"digest": values_digest(rows), "rows": len(rows)})
        if entry.name == METRICS_NAME
        else entry
        for entry in publish_folder(
            store, f"{folder}/result", result, outside_digest=(METRICS_NAME,)
        )
    ]
    files += _previews(store, folder)
    return files + [_beside(store, folder, name) for name in _fault_names(rows)]


def _previews(store: Store, folder: str) -> list[FileEntry]:
    """Pictures of this run and of those it resumed; none is part of the digest."""
    return [
        _beside(store, folder, f"{PREVIEWS}/{Path(entry.path).name}")
        for entry in store.list(f"{folder}/{PREVIEWS}")
    ]


def _fault_names(rows: list[Row]) -> list[str]:
    """The files about steps that were passed over or stood out."""
    steps = [(int(row["step"]) - 1, row["values"]) for row in rows]
    names = [fault_name(step) for step, values in steps if {"skipped", "spike"} & set(values)]
    return names + [rewind_name(step) for step, values in steps if "rewound_steps" in values]


def _beside(store: Store, folder: str, name: str) -> FileEntry:
    """A file that is there already and is no part of the digest."""
    place = store.local(f"{folder}/{name}")
    size = place.stat().st_size
    return FileEntry(name=name, path=f"{folder}/{name}", sha256=sha256_file(place), bytes=size)


def _totals(rows: list[Row]) -> dict[str, float]:
    """Sums over the run of what only some of its steps have."""
    sums = {
        total: sum(row["values"].get(mark, 0.0) for row in rows) for mark, total in MARKS.items()
    }
    return {f"train.{total}": value for total, value in sums.items() if value}


def _rates(rows: list[Row]) -> dict[str, float]:
    """Means over the steps: seconds, and things a second; of `peak_` measures the highest."""
    training = [row["timing"] for row in rows if row["kind"] == "train"]
    if not training:
        return {}
    found = {}
    for name in training[-1]:
        # A run that goes on under a newer version has rows that lack some.
        values = [timing[name] for timing in training if name in timing]
        peak = name.startswith("peak_")
        found[name] = max(values) if peak else round(sum(values) / len(values), 4)
    return found
