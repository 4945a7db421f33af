"""What a run left, read and compared."""

import json
from pathlib import Path
from typing import Any

WEIGHTS = ("model.safetensors", "ema.safetensors")


def result_file(folder: Path, outcome: dict[str, Any], name: str) -> bytes:
    (path,) = [file["path"] for file in outcome["files"] if file["name"] == name]
    return (folder / path).read_bytes()


def rows(folder: Path, outcome: dict[str, Any], kind: str = "train") -> list[dict[str, Any]]:
    """Steps and values, without durations."""
    lines = result_file(folder, outcome, "metrics.jsonl").splitlines()
    return [
        {"step": row["step"], **row["values"]}
        for row in map(json.loads, lines)
        if row["kind"] == kind
    ]


Run = tuple[Path, dict[str, Any]]
"""The folder of a run's store, and its outcome."""


def assert_same_weights(one: Run, other: Run) -> None:
    """The last and the averaged, to the bit."""
    for name in WEIGHTS:
        assert result_file(*one, name) == result_file(*other, name), name


def assert_same(one: Run, other: Run) -> None:
    """To the bit in all but durations: rows, weights, what the result holds, its metrics."""
    assert rows(*one) == rows(*other)
    assert rows(*one, "validation") == rows(*other, "validation")
    assert_same_weights(one, other)
    digests = [{f["name"]: f["digest"] for f in outcome["files"]} for _, outcome in (one, other)]
    assert digests[0] == digests[1]
    assert one[1]["metrics"] == other[1]["metrics"]


def records(folder: Path) -> list[Path]:
    """Of the checkpoints that are there, the oldest first."""
    return sorted((folder / "run/checkpoints").glob("step-*.json"))


def steps_saved(folder: Path) -> list[int]:
    return [int(record.stem.removeprefix("step-")) for record in records(folder)]


def read_record(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"run/checkpoints/step-{step:06d}.json").read_text())


def contents(folder: Path, step: int) -> dict[str, str]:
    """Digests of a checkpoint's tensors: weights, their average, moments."""
    return {
        Path(file["path"]).name: file["sha256"]
        for file in read_record(folder, step)["files"]
        if file["path"].endswith(".distcp")
    }
