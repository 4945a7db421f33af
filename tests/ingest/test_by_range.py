"""Shards that no disk would keep are read by row groups: the same batches, and no shard is fetched whole."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline import make_mixture
from tests.s3 import BUCKET, serve_s3
from transfusion.artifacts.artifact import Artifact, open_artifact
from transfusion.artifacts.shards import row_entries
from transfusion.errors import ArtifactError
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch
from transfusion.storage.local import LocalStore
from transfusion.storage.ranges import RangeFile
from transfusion.storage.s3 import S3Store
from transfusion.storage.store import open_store

DATA = bytes(range(200))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(-1, 250)),
            st.tuples(st.just("start"), st.integers(0, 250)),
            st.tuples(st.just("end"), st.integers(-200, 0)),
        )
    )
)
def test_a_file_of_ranges_is_a_file(tmp_path_factory: pytest.TempPathFactory, calls) -> None:
    folder = tmp_path_factory.getbasetemp() / "ranges"
    folder.mkdir(exist_ok=True)
    (folder / "object").write_bytes(DATA)
    ranges = RangeFile(LocalStore(str(folder)), "object", size_bytes=len(DATA))
    plain = io.BytesIO(DATA)
    for kind, number in calls:
        for file in (ranges, plain):
            if kind != "read":
                file.seek(number, io.SEEK_SET if kind == "start" else io.SEEK_END)
        if kind == "read":
            assert ranges.read(number) == plain.read(number)
        assert ranges.tell() == plain.tell()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind a bucket with a mixture in it; local copies may take a few bytes only."""
    (tmp_path / BUCKET).mkdir()
    make_mixture(tmp_path / BUCKET / "store", num_images=40)
    with serve_s3(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TRANSFUSION_CACHE_GIB", "1e-6")
        yield tmp_path / BUCKET / "store"


def mixture_in(uri: str, folder: Path) -> Artifact:
    (manifest,) = (folder / "data_pipelines.mix").glob("*/manifest.json")
    return open_artifact(open_store(uri), str(manifest.relative_to(folder)))


def batches(uri: str, folder: Path) -> list[PackedBatch]:
    reader = MixtureReader(mixture_in(uri, folder), seed=1)
    trained = [reader.micro_batch(step, lane) for step in range(2) for lane in range(reader.lanes)]
    return [*trained, reader.validation(0)]


def shards(folder: Path) -> list[Path]:
    mixture = mixture_in(str(folder), folder)
    roles = ("captions", "prose", "latents")
    entries = [entry for role in roles for entry in row_entries(mixture.input(role)).values()]
    return [folder / entry.path for entry in entries]


def test_batches_by_range_are_those_of_whole_shards(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched_whole: list[str] = []
    local = S3Store.local

    def watched(store: S3Store, path: str, *, fresh: bool = False) -> Path:
        fetched_whole.append(path)
        return local(store, path, fresh=fresh)

    monkeypatch.setattr(S3Store, "local", watched)
    by_range = batches(f"s3://{BUCKET}/store", bucket)
    rows = {str(place.relative_to(bucket)) for place in shards(bucket)}
    assert fetched_whole, "indexes and blocks of the plan still are"
    assert not rows & set(fetched_whole)
    for ours, theirs in zip(by_range, batches(str(bucket), bucket), strict=True):
        for name in PackedBatch.__slots__:
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one is other or torch.equal(one, other), name
    monkeypatch.setenv("TRANSFUSION_CACHE_GIB", "1")
    batches(f"s3://{BUCKET}/store", bucket)
    assert rows & set(fetched_whole), "what a disk keeps is fetched once, and its sha256 compared"


@pytest.mark.parametrize("how", ["altered", "cut short", "gone"])
def test_a_shard_that_is_not_as_it_was_written_is_told(bucket: Path, how: str) -> None:
    for place in shards(bucket):
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        if how == "altered":
            place.write_bytes(data)
        elif how == "cut short":
            place.write_bytes(place.read_bytes()[: len(data) // 2])
        else:
            place.unlink()
    rule = {"altered": "cannot be read", "cut short": "bytes came of", "gone": "no such object"}
    with pytest.raises(ArtifactError, match=rule[how]) as caught:
        batches(f"s3://{BUCKET}/store", bucket)
    assert f"s3://{BUCKET}/store/data_pipelines" in str(caught.value)
