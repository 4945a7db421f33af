"""Generated pictures as files that other programs read.

    geneval   00000/metadata.jsonl, one line: what is known of the prompt; 00000/samples/0000.png, ...
    parquet   a file a shard, with the columns of the kind `images`: a source again, `parquet_images`

Source of the first: GenEval's `evaluation/evaluate_images.py` (Ghosh et al. 2023, arXiv:2310.11513).
"""

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transfusion.artifacts.artifact import Artifact, find_artifact
from transfusion.artifacts.images import ImageRow, read_images
from transfusion.artifacts.shards import ROWS, row_entries
from transfusion.errors import ArtifactError, SpecError
from transfusion.runner.show import open_address
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store

Layout = Literal["geneval", "parquet"]

MARK = "export.json"
"""Says which pictures a folder is of, so that an export that was killed goes on and no two are mixed."""


def export_images(
    target: str, *, out: Path, layout: str, stage: str | None = None, overrides: Sequence[str] = ()
) -> str:
    """Writes the pictures of an artifact, or of a job's stage; what is there already is not written again.

    Raises:
        SpecError: The layout is not known, no stage or several make pictures, or the folder holds other things.
        ArtifactError: The pictures were not made yet, or were altered.
    """
    if layout not in get_args(Layout):
        raise SpecError(f"export: layout must be {' or '.join(get_args(Layout))}, got {layout!r}")
    artifact = _images(target, stage, overrides)
    _claim(out, {"digest": artifact.manifest.digest, "layout": layout})
    write = _geneval if layout == "geneval" else _parquet
    return f"{out}  {sum(write(artifact, out)):,} pictures"


def _geneval(artifact: Artifact, out: Path) -> Iterator[int]:
    for number, (_, samples) in enumerate(_by_prompt(artifact)):
        folder = out / f"{number:05}"
        pictures = list(samples)
        if not folder.exists():
            _write_prompt(folder, pictures)
        yield len(pictures)


def _by_prompt(artifact: Artifact) -> Iterator[tuple[int, Iterator[ImageRow]]]:
    """The samples of each prompt. Keys are distinct within a shard only: a prompt begins with its first sample."""
    prompt = itertools.count(-1)
    number = next(prompt)

    def number_of(row: ImageRow) -> int:
        nonlocal number
        if not row.sample:
            number = next(prompt)
        return number

    return itertools.groupby(read_images(artifact), key=number_of)


def _write_prompt(folder: Path, pictures: Sequence[ImageRow]) -> None:
    """The folder takes its name last."""
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "samples").mkdir(parents=True)
    said = {**pictures[0].metadata, "prompt": pictures[0].prompt}
    (unfinished / "metadata.jsonl").write_text(f"{json.dumps(said)}\n", encoding="utf-8")
    for row in pictures:
        (unfinished / "samples" / f"{row.sample:04}.png").write_bytes(row.image)
    unfinished.rename(folder)


def _parquet(artifact: Artifact, out: Path) -> Iterator[int]:
    for shard, entry in row_entries(artifact).items():
        place = out / f"{shard}.parquet"
        if not place.exists():
            unfinished = place.with_name(f".{place.name}")
            shutil.copyfile(artifact.local(f"{shard}/{ROWS}"), unfinished)
            unfinished.rename(place)
        yield entry.rows or 0


def _claim(out: Path, content: dict[str, Any]) -> None:
    mark, text = out / MARK, json.dumps(content)
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return
    unfinished = out / f".{MARK}"
    if out.exists() and (not out.is_dir() or set(out.iterdir()) - {unfinished}):
        raise SpecError(
            f"{out}: is no empty folder, and no export of these pictures: give another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(mark)


def _images(target: str, stage: str | None, overrides: Sequence[str]) -> Artifact:
    path = Path(target)
    if path.suffix not in {".yaml", ".yml"}:
        if stage is not None or overrides:
            raise SpecError(
                f"{target}: --stage and key=value belong to a job file; leave them out, or name the job"
            )
        artifact = open_address(target)
        if artifact.kind != "images":
            raise ArtifactError(f"{target}: holds {artifact.kind}, not generated images")
        return artifact
    job = read_job(path, overrides)
    names = [s.name for s in job.stages if s.declaration.output == "images"]
    chosen = [name for name in names if stage in (None, name)]
    if len(chosen) != 1:
        raise SpecError(
            f"{path}: --stage must name one stage that generates images: {', '.join(names) or 'there is none'}"
        )
    store = open_store(job.file.store)
    planned = next(p for p in plan_job(job, store, until=chosen[0]) if p.stage.name == chosen[0])
    found = find_artifact(store, uses=planned.stage.uses, fingerprint=planned.fingerprint)
    if found is None:
        command = " ".join(["transfusion run", str(path), *overrides, "--until", chosen[0]])
        raise ArtifactError(f"{path}: {chosen[0]} was not made yet; make it with: {command}")
    return found
