"""Running a job: what is there is not made again, and nothing half-made is visible."""

import json
import logging
import time
from pathlib import Path

import pytest

from transfusion.artifacts.manifest import Content, FileEntry, Manifest, manifest_path
from transfusion.errors import ArtifactError, SpecError
from transfusion.resources import Resources
from transfusion.runner.gc import collect_garbage
from transfusion.runner.profile import read_profile
from transfusion.runner.run import run_job, summary
from transfusion.runner.show import artifact_status, job_status, status_text
from transfusion.spec.job import read_job
from transfusion.storage.store import Store, open_store

LOG = logging.getLogger("tests")

JOB = """
store: STORE
stages:
  images: {uses: data_pipelines.sources.shapes, config: {num_images: 100, seed: 0}}
  prose: {uses: data_pipelines.sources.python_docs}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("STORE", str(tmp_path / "store")))
    return file


def run(file: Path, *overrides: str, until: str | None = None):
    return run_job(read_job(file, overrides), resources=Resources(), until=until, log=LOG)


def test_a_second_run_makes_nothing_and_rewrites_nothing(job_file: Path, tmp_path: Path) -> None:
    first = run(job_file)
    stamps = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()
    }
    second = run(job_file)
    assert [result.ran for result in first] == [True, True]
    assert [result.ran for result in second] == [False, False]
    assert summary(second) == "all 2 stages cached, nothing to do"
    after = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()
    }
    assert after == stamps


def test_until_stops_there(job_file: Path) -> None:
    assert [result.planned.stage.name for result in run(job_file, until="prose")] == ["prose"]


def test_show_gives_status_fingerprint_path_and_metrics_of_every_stage(job_file: Path) -> None:
    before = job_status(job_file, [])["stages"]["images"]
    assert (before["status"], before["metrics"]) == ("new", {})
    run(job_file)
    status = job_status(job_file, [])
    images = status["stages"]["images"]
    assert {"status", "fingerprint", "path", "metrics"} <= set(images)
    assert images["status"] == "cached"
    json.dumps(status)
    assert "images" in status_text(status)
    lineage = artifact_status(images["path"])
    assert [stage["name"] for stage in lineage["stages"].values()] == ["images"]


def test_two_runs_at_once_agree_on_one_artifact(job_file: Path) -> None:
    """The second finds the first's manifest when it comes to commit its own: the same content, so no fault."""
    first = run(job_file)[0]
    path = manifest_path(first.planned.stage.uses, first.planned.fingerprint)
    store = first.artifact.store
    original = store.read(path)

    def commit_while_we_work(*args: object, **kwargs: object) -> bool:
        store.write(path, original)
        return False

    store.delete(path)
    job = read_job(job_file)
    import transfusion.runner.run as runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "open_store", lambda uri: store)
        patch.setattr(store, "create", commit_while_we_work)
        results = run_job(job, resources=Resources(), log=LOG)
    assert results[0].artifact.manifest.digest == first.artifact.manifest.digest


def test_two_runs_that_made_different_things_are_told(job_file: Path) -> None:
    first = run(job_file)[0]
    store, path = (
        first.artifact.store,
        manifest_path(first.planned.stage.uses, first.planned.fingerprint),
    )
    manifest = Manifest.model_validate_json(store.read(path))
    other = Content(
        kind="listing", files=[FileEntry(name="x", path="x", sha256="0", bytes=1, digest="d")]
    )
    changed = manifest.model_copy(update={"content": other, "digest": other.digest()})

    def create(*args: object) -> bool:
        store.write(path, changed.model_dump_json().encode())
        return False

    store.delete(path)
    import transfusion.runner.run as runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "open_store", lambda uri: store)
        patch.setattr(store, "create", create)
        with pytest.raises(ArtifactError, match="made something else"):
            run_job(read_job(job_file), resources=Resources(), log=LOG)


def test_gc_lists_what_no_manifest_reaches_and_deletes_only_when_asked(
    job_file: Path, tmp_path: Path
) -> None:
    run(job_file)
    store = open_store(str(tmp_path / "store"))
    in_use = [entry.path for entry in store.list("")]
    store.write("data_pipelines.pixels/pool/data/orphan.parquet", b"left by a crash")

    def gc(hours: float, *, delete: bool) -> str:
        return "\n".join(collect_garbage(store.uri, older_than_hours=hours, delete=delete))

    assert "1 younger than 24 h spared" in gc(24.0, delete=False)
    assert "orphan.parquet" in gc(0.0, delete=False)
    assert store.exists("data_pipelines.pixels/pool/data/orphan.parquet")
    gc(0.0, delete=True)
    assert [entry.path for entry in store.list("")] == in_use


def test_gc_looks_once_at_a_pool_in_which_a_run_has_begun_meanwhile(
    job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job_file)
    store = open_store(str(job_file.parent / "store"))
    pool = "data_pipelines.pixels/pool"
    for number in range(20):
        store.write(f"{pool}/data/{number}.parquet", b"left by a crash")
    looks = []
    original = type(store).list_fanned

    def looked(self: Store, prefix: str):
        looks.append(prefix)
        store.write(f"{pool}/data/new.parquet", b"a run goes on")
        return [entry._replace(modified_s=time.time() + 10) for entry in original(self, prefix)]

    monkeypatch.setattr(type(store), "list_fanned", looked)
    told = list(collect_garbage(store.uri, older_than_hours=0.0, delete=True))
    assert looks == [pool]
    assert told[-1].startswith("0 objects")


def test_gc_touches_nothing_but_a_stores_own_objects(job_file: Path, tmp_path: Path) -> None:
    run(job_file)
    store = tmp_path / "store"
    for name in ("laion/0.tar", "data_pipelines/code.py", "notes.txt"):
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_bytes(b"somebody else's")
    told = list(collect_garbage(str(store), older_than_hours=0.0, delete=True))
    assert told[-1].startswith("0 objects")
    with pytest.raises(ArtifactError, match="is no store's root, but holds one below"):
        list(collect_garbage(str(tmp_path), older_than_hours=0.0, delete=True))
    assert (store / "laion/0.tar").exists()


def test_a_profile_with_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text("train: {num_worker: 4}\n")
    with pytest.raises(SpecError, match="did you mean 'num_workers'"):
        read_profile(file)
