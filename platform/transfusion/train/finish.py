"""From the first step to the result's files, on every rank. Plain torch."""

import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.publish import publish_folder
from transfusion.storage.store import Store, sha256_file
from transfusion.train.loop import PREVIEWS, Place, Tell, fit
from transfusion.train.metrics import Row, Tracker, as_lines, values_digest, wandb_tracker
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
) -> dict[str, Any]:
    """Trains, writes the result and stores it; returns files, metadata, metrics and timings as plain JSON."""

    def tracker() -> Tracker | None:
        if tracking != "wandb":
            return None
        home = scratch if scratch.is_dir() else Path(tempfile.gettempdir())
        return wandb_tracker(
            run_id=fingerprint[:16], name=name, config=trainee.config.resolved(), folder=home
        )

    finished = fit(
        trainee,
        place=Place(store=store, folder=folder, fingerprint=fingerprint, scratch=scratch),
        tell=tell,
        tracker=tracker,
    )
    with tempfile.TemporaryDirectory() as result:
        written = trainee.write(Path(result), averaged=finished.averaged)
        if dist.get_rank() != 0:
            return {}
        (Path(result) / METRICS_NAME).write_bytes(as_lines(finished.rows))
        files = [
            # Durations differ from run to run: the digest is over steps and values.
            entry.model_copy(
                update={
                    "digest": values_digest(finished.rows),
                    "rows": len(finished.rows),
                }
            )
            if entry.name == METRICS_NAME
            else entry
            for entry in publish_folder(
                store, f"{folder}/result", Path(result), outside_digest=(METRICS_NAME,)
            )
        ]
        files += _previews(store, folder)
    return {
        "files": [file.model_dump(mode="json") for file in files],
        "metadata": written.metadata,
        "metrics": {**_last_values(finished.rows), **written.metrics},
        "timings": _rates(finished.rows),
    }


def _previews(store: Store, folder: str) -> list[FileEntry]:
    """Pictures of this run and of those it resumed; none is part of the digest."""
    entries = []
    for entry in store.list(f"{folder}/{PREVIEWS}"):
        sha256 = sha256_file(store.local(entry.path))
        name = f"{PREVIEWS}/{Path(entry.path).name}"
        entries.append(FileEntry(name=name, path=entry.path, sha256=sha256, bytes=entry.size_bytes))
    return entries


def _last_values(rows: list[Row]) -> dict[str, float]:
    """The last value of everything that was measured, such as `validation.psnr_db`."""
    last: dict[str, float] = {}
    for row in rows:
        last |= {f"{row['kind']}.{name}": value for name, value in row["values"].items()}
    last.pop("train.lr", None)
    return last


def _rates(rows: list[Row]) -> dict[str, float]:
    """Means over the steps: seconds, and things a second."""
    training = [row["timing"] for row in rows if row["kind"] == "train"]
    if not training:
        return {}
    return {
        name: round(sum(timing[name] for timing in training) / len(training), 4)
        for name in training[-1]
    }
