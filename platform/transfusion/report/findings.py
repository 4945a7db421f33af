"""What an evaluation found, ready to show: samples with verdicts, captions, reconstructions.

An evaluation that has none of one kind leaves its file out; that section of the page is then left out too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfusion.artifacts.artifact import Artifact
from transfusion.report.pictures import Album, Picture, psnr_db

SAMPLES, CAPTIONS, RECONSTRUCTIONS = "samples.json", "captions.json", "reconstructions.json"
EDITS = "edits.json"
NEAREST = "nearest.json"

_Row = Mapping[str, Any]
_NearRows = Mapping[str, _Row]
"""Rows of the nearest training images, by the file of what was drawn."""

UNJUDGED = "held-out captions"
"""Heading of samples that belong to no task: drawn from the captions of held-out images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """The training image that is nearest to what was drawn."""

    picture: Picture
    key: str
    """Source and document, and which of its images where it has several."""
    distance: float
    ratio: float | None
    """Of the distance to the median of held-out images; None where none were."""
    is_copy: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A generated image."""

    prompt: str
    picture: Picture
    correct: bool | None
    """None where nothing judges it."""
    reason: str
    """What is wrong with it."""
    nearest: Near | None
    """None where nothing was looked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The samples of one task that are shown, of all there are."""

    name: str
    samples: list[Sample]
    total: int
    correct: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """A held-out image and what the model said of it."""

    picture: Picture | None
    """None where the evaluation kept none."""
    text: str
    reference: str
    correct: bool | None
    """Colours and shapes are those of the image; None where nothing judges it."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """An image, what the model made of it, and what it was to become."""

    instruction: str
    source: Picture
    made: Picture
    true: Picture
    correct: bool | None
    """None where the image has no other edit to be compared with."""
    reason: str
    nearest: Near | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """An image before and after the autoencoder."""

    original: Picture
    reconstructed: Picture
    psnr_db: float
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that is shown of an evaluation."""

    tasks: list[Task]
    captions: list[Caption]
    """With pictures."""
    wrong_captions: list[Caption]
    """Further ones that are wrong, without pictures."""
    num_captions: int
    edits: list[Edit]
    num_edits: int
    reconstructions: list[Reconstruction]


def read_findings(evaluation: Artifact, album: Album, *, max_listed: int) -> Findings:
    """Reads an evaluation and embeds its images: a fifth for each kind, and for samples what is left."""
    share = album.left // 5
    captions = _rows(evaluation, CAPTIONS)
    pictured = [row for row in captions if "file" in row][:share]
    wrong = [row for row in captions if row not in pictured and _caption_correct(row) is False]
    pairs = _rows(evaluation, RECONSTRUCTIONS)[: share // 2]
    edits = _rows(evaluation, EDITS)
    near = {row["of"]: row for row in _rows(evaluation, NEAREST)}
    return Findings(
        captions=[_caption(evaluation, album, row) for row in pictured],
        wrong_captions=[_caption(evaluation, None, row) for row in wrong[:max_listed]],
        num_captions=len(captions),
        edits=[_edit(evaluation, album, row, near) for row in edits[: share // (4 if near else 3)]],
        num_edits=len(edits),
        reconstructions=[_reconstruction(evaluation, album, row) for row in pairs],
        tasks=_tasks(evaluation, album, near),
    )


def _tasks(evaluation: Artifact, album: Album, near: _NearRows) -> list[Task]:
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(evaluation, SAMPLES):
        by_task.setdefault(row.get("task", UNJUDGED), []).append(row)
    left, tasks = album.left // (2 if near else 1), []
    # Small tasks first: what they do not use is for the large ones.
    for index, name in enumerate(sorted(by_task, key=lambda task: len(by_task[task]))):
        rows = by_task[name]
        taken = rows[: left // (len(by_task) - index)]
        left -= len(taken)
        verdicts = [row.get("correct") for row in rows]
        tasks.append(
            Task(
                name=name,
                samples=[_sample(evaluation, album, row, near) for row in taken],
                total=len(rows),
                correct=None if None in verdicts else sum(map(bool, verdicts)),
            )
        )
    order = list(by_task)
    return sorted(tasks, key=lambda task: order.index(task.name))


def _rows(evaluation: Artifact, name: str) -> list[dict[str, Any]]:
    if not any(file.name == name for file in evaluation.manifest.content.files):
        return []
    rows = json.loads(evaluation.read(name))
    return list(rows)


def _near(evaluation: Artifact, album: Album, row: _Row | None) -> Near | None:
    if row is None:
        return None
    several = f", image {row['image_index'] + 1}" if row["image_index"] else ""
    return Near(
        picture=album.add(evaluation.read(row["file"])),
        key=f"{row['source']}/{row['key']}{several}",
        distance=row["distance"],
        ratio=row.get("ratio"),
        is_copy=row.get("copy", False),
    )


def _sample(evaluation: Artifact, album: Album, row: _Row, near: _NearRows) -> Sample:
    return Sample(
        prompt=row["prompt"],
        picture=album.add(evaluation.read(row["file"])),
        correct=row.get("correct"),
        reason=row.get("reason", ""),
        nearest=_near(evaluation, album, near.get(row["file"])),
    )


def _caption(evaluation: Artifact, album: Album | None, row: _Row) -> Caption:
    faults = [
        said
        for name, said in (("color", "colour"), ("shape", "shape"))
        if row.get(f"{name}_correct") is False
    ]
    return Caption(
        picture=album.add(evaluation.read(row["file"])) if album else None,
        text=row["caption"],
        reference=row["reference"],
        correct=_caption_correct(row),
        reason=f"wrong {' and '.join(faults)}" if faults else "",
    )


def _caption_correct(row: _Row) -> bool | None:
    return row["color_correct"] and row["shape_correct"] if "color_correct" in row else None


def _edit(evaluation: Artifact, album: Album, row: _Row, near: _NearRows) -> Edit:
    correct = row.get("correct")
    return Edit(
        instruction=row["instruction"],
        source=album.add(evaluation.read(row["source"])),
        made=album.add(evaluation.read(row["made"])),
        true=album.add(evaluation.read(row["true"])),
        correct=correct,
        reason=f"nearest: {row['nearest']}" if correct is False else "",
        nearest=_near(evaluation, album, near.get(row["made"])),
    )


def _reconstruction(evaluation: Artifact, album: Album, row: _Row) -> Reconstruction:
    original, copy = evaluation.read(row["original"]), evaluation.read(row["reconstruction"])
    return Reconstruction(
        original=album.add(original),
        reconstructed=album.add(copy),
        psnr_db=psnr_db(original, copy),
        caption=row["caption"],
    )
