"""Data that grows: only what is new is encoded, what is gone is named, and a job works on one snapshot."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.shards import in_process
from data_pipelines.sources.growth import told
from tests.data_pipelines.tars import Member, write_tar
from tests.pipeline import make, make_autoencoder
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import row_entries
from transfusion.errors import ArtifactError
from transfusion.resources import Resources
from transfusion.runner.run import run_job
from transfusion.spec.job import read_job
from transfusion.storage.local import LocalStore
from transfusion.storage.store import open_store

TARS = "data_pipelines.sources.webdataset"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _members(tar: int, *, red: int = 0) -> list[Member]:
    found: list[Member] = []
    for index in range(2):
        image = io.BytesIO()
        Image.new("RGB", (32, 32), (red, tar % 256, index)).save(image, "PNG")
        name = f"{tar:05}{index:04}"
        found += [(f"{name}.png", image.getvalue()), (f"{name}.txt", f"tar {tar}".encode())]
    return found


def _encode(root: Path, images: Artifact) -> tuple[Artifact, set[str]]:
    """The latents, and the tars that were read for them."""
    read: set[str] = set()

    def watch(factory, tasks, resources):
        read.update(task.descriptor.spec["path"] for task in tasks)
        return in_process(factory, tasks, resources)

    inputs = {"images": images, "autoencoder": make_autoencoder(root)}
    config = {"image_size_px": 32, "micro_batch": 2}
    return make(root, "data_pipelines.encode_images", config, inputs, launch=watch), read


def test_of_a_hundred_tars_only_what_is_new_or_changed_is_encoded_and_what_is_gone_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, tars = tmp_path / "store", tmp_path / "tars"
    caplog.set_level(logging.INFO)
    for index in range(100):
        write_tar(tars / f"{index:05}.tar", _members(index))

    def step() -> tuple[dict[str, str], set[str], float, int]:
        caplog.clear()
        latents, read = _encode(root, make(root, TARS, {"path": str(tars)}))
        files = {name: entry.sha256 for name, entry in row_entries(latents).items()}
        outcomes = latents.manifest.content.outcomes
        assert outcomes is not None
        return files, read, latents.manifest.timings["images encoded"], outcomes.written

    first, read, encoded, written = step()
    assert (len(read), encoded, written) == (100, 200, 200)
    assert "since the last listing" not in caplog.text

    write_tar(tars / "00100.tar", _members(100))
    grown, read, encoded, written = step()
    assert (read, encoded, written) == ({"00100.tar"}, 2, 202)
    assert "1 new since the last listing: new 00100.tar" in caplog.text
    assert first.items() < grown.items()

    (tars / "00042.tar").unlink()
    shrunk, read, encoded, written = step()
    assert (read, encoded, written) == (set(), 0, 200)
    assert "1 gone since the last listing: gone 00042.tar" in caplog.text
    assert shrunk.items() < grown.items()

    write_tar(tars / "00007.tar", _members(7, red=200))
    changed, read, encoded, written = step()
    assert (read, encoded, written) == ({"00007.tar"}, 2, 200)
    assert "1 changed since the last listing: changed 00007.tar" in caplog.text
    assert len(changed.items() & shrunk.items()) == 99

    os.utime(tars / "00008.tar", (1e9, 1e9))
    same, read, encoded, written = step()
    assert (same, read, encoded) == (changed, set(), 0)
    assert "the same files as in the last listing" in caplog.text


def test_many_names_are_counted() -> None:
    now = {f"{index}": 0 for index in range(1000, 1020)}
    assert told({"1000": 0, "1001": 9, "x": 0}, now) == (
        "18 new, 1 changed, 1 gone since the last listing: "
        "new 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009 and 10 more; changed 1001; gone x"
    )


def _job(folder: Path, path: str) -> Path:
    job = folder / "job.yaml"
    stage = f"{{uses: data_pipelines.sources.text, config: {{path: '{path}'}}}}"
    job.write_text(f"store: {folder}/store\nstages:\n  prose: {stage}\n")
    return job


def test_input_that_changes_between_plan_and_listing_is_an_error_and_no_wrong_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_text("one\n")
    job = read_job(_job(tmp_path, str(raw)))
    probe = LocalStore.probe

    def change(store: LocalStore) -> object:
        (raw / "b.txt").write_text("two\n")
        return probe(store)

    log = logging.getLogger("transfusion.job")
    with monkeypatch.context() as late:
        late.setattr(LocalStore, "probe", change)
        with pytest.raises(ArtifactError, match=r"prose: raw input changed since.*run it again"):
            run_job(job, resources=Resources(), log=log)
    (again,) = run_job(job, resources=Resources(), log=log)
    assert again.ran
    (cached,) = run_job(job, resources=Resources(), log=log)
    assert not cached.ran


def test_a_bucket_is_listed_once_and_again_when_it_is_asked_for(
    tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"s3://bucket/{tmp_path.name}/raw"
    environment = {**os.environ, **s3_environment}
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    bucket = open_store(where)

    def transfusion(*words: str) -> str:
        program = (
            "import sys; from transfusion.cli import main; sys.argv[0] = 'transfusion'; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stderr + done.stdout

    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    job = str(_job(tmp_path, where))
    bucket.write("a.txt", b"one")
    assert f"{where}: 1 files listed in 1 LIST requests" in transfusion("run", job)
    bucket.write("b.txt", b"two")
    kept = transfusion("plan", job)
    assert "1 files as listed" in kept
    assert "cached" in kept
    anew = transfusion("run", job, "--refresh")
    # The body works on the listing that was planned with: it is asked for once.
    assert anew.count("2 files listed in 1 LIST requests") == 1
    assert "2 files as listed" in anew
    assert "1 new since the last listing: new b.txt" in anew
    assert (
        len(list(open_store(str(tmp_path / "store")).children("data_pipelines.sources.text"))) == 2
    )
