"""Tars of captioned images: every sample is a document or has a reason, whatever the tar holds."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.sources import image_folder
from data_pipelines.sources.webdataset import WebdatasetConfig, identities, list_shards, read
from data_pipelines.sources.webdataset_samples import Draw
from data_pipelines.sources.webdataset_tar import read_samples
from tests.data_pipelines.tars import link, pair, tar_bytes, write_tar
from transfusion.errors import ArtifactError
from transfusion.storage.store import open_store

Row = Document | Rejected


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _rows(path: Path | str, **config: object) -> list[Row]:
    made = WebdatasetConfig(path=str(path), **config)
    return [row for shard in list_shards(made) for row in read(made, shard)]


def _rows_of(data: bytes, **config: object) -> list[Row]:
    """Rows of a tar in memory, called `t.tar`."""
    draw = Draw(WebdatasetConfig(path="", **config))
    limit = draw._config.max_member_bytes
    samples = read_samples(io.BytesIO(data), "t.tar", wanted=draw.wanted, max_member_bytes=limit)
    return [row if isinstance(row, Rejected) else draw.document(row) for row in samples]


def _outcomes(rows: list[Row]) -> dict[str, str]:
    """By key: the caption, or the reason in brackets."""
    found: dict[str, str] = {}
    for row in rows:
        assert row.key not in found
        row.key.encode()
        if isinstance(row, Rejected):
            assert row.detail
            found[row.key] = f"[{row.reason}]"
        else:
            *words, image = row.segments
            assert isinstance(image, Image)
            found[row.key] = "".join(word.text for word in words if isinstance(word, Text))
    return found


def test_what_img2dataset_writes_is_read_with_its_metadata(tmp_path: Path) -> None:
    fields = {
        "width": 384, "height": 256, "similarity": 0.31, "punsafe": 1e-4, "LICENSE": "?", "url": "http://x/",
        "exif": '{"Make": "x"}', "error_message": None, "NSFW": None,
    }  # fmt: skip
    write_tar(tmp_path / "00000.tar", [*pair("000000000", "a dog", **fields), *pair("000000001")])
    write_tar(tmp_path / "00001.tar", pair("000010000", " a cat\n"))
    (tmp_path / "00000.parquet").write_bytes(b"the same metadata as a table")
    (tmp_path / "00000_stats.json").write_text("{}")
    first, second, third = _rows(tmp_path)
    assert isinstance(first, Document)
    assert first.key == "00000.tar/000000000"
    assert first.segments == (
        Text("a dog"),
        Image(b"image 000000000", "00000.tar/000000000.jpg"),
    )
    assert first.metadata == {
        "status": "success", "width": 384, "height": 256, "similarity": 0.31, "punsafe": 1e-4, "LICENSE": "?",
    }  # fmt: skip
    assert _outcomes([second, third]) == {
        "00000.tar/000000001": "number 000000001", "00001.tar/000010000": "a cat",
    }  # fmt: skip
    assert [row.metadata for row in _rows(tmp_path, metadata_fields=("url",))] == [
        {"url": "http://x/"}, {}, {},
    ]  # fmt: skip


def test_every_sample_that_is_none_is_named_with_its_reason() -> None:
    rows = _rows_of(
        tar_bytes([
            *pair("good"),
            ("no_caption.jpg", b"x"),
            ("no_image.txt", b"words"), ("no_image.cls", b"3"),
            ("empty.jpg", b"x"), ("empty.txt", b" \n"),
            ("latin.jpg", b"x"), ("latin.txt", b"caf\xe9"),
            ("nul.png", b"x"), ("nul.txt", b"a\0b"),
            ("list.jpg", b"x"), ("list.json", b"[1]"), ("list.txt", b"w"),
            ("broken.jpg", b"x"), ("broken.json", b"{"), ("broken.txt", b"w"),
            ("huge.jpg", b"x" * 101), ("huge.txt", b"w"),
            *pair("good"),
            ("apart.jpg", b"x"), ("apart.txt", b"w"), ("other.jpg", b"x"), ("other.txt", b"w"),
            ("apart.json", b"{}"),
            ("twice.jpg", b"x"), ("twice.txt", b"w"), ("twice.jpg", b"y"), ("twice.txt", b"v"),
        ]),
        max_member_bytes=100,
    )  # fmt: skip
    offsets = {row.key: row.detail for row in rows if row.key.startswith("t.tar:")}
    assert len(offsets) == 3
    assert all(
        f"t.tar/{name}: " in " ".join(offsets.values()) for name in ("good", "apart", "twice")
    )
    assert _outcomes([row for row in rows if row.key not in offsets]) == {
        "t.tar/good": "number good",
        "t.tar/no_caption": "[missing_member]",
        "t.tar/no_image": "[missing_member]",
        "t.tar/empty": "[missing_member]",
        "t.tar/latin": "[bad_caption]",
        "t.tar/nul": "[bad_caption]",
        "t.tar/list": "[bad_metadata]",
        "t.tar/broken": "[bad_metadata]",
        "t.tar/huge": "[too_large]",
        "t.tar/apart": "w",
        "t.tar/other": "w",
        "t.tar/twice": "w",
    }
    assert {row.reason for row in rows if row.key in offsets} == {"duplicate_member"}


def test_links_devices_and_names_that_lead_out_are_rejected_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = [
        link("a.jpg", tarfile.SYMTYPE), link("b.jpg", tarfile.LNKTYPE), link("c.jpg", tarfile.CHRTYPE),
        link("d.jpg", tarfile.FIFOTYPE), link("e.jpg", tarfile.GNUTYPE_SPARSE), link("f.jpg", b"Z"),
        ("/g.jpg", b"x"), ("../h.jpg", b"x"), ("i/../../i.jpg", b"x"),
    ]  # fmt: skip
    data = tar_bytes(
        [*pair("first"), *evil, link("folder", tarfile.DIRTYPE), *pair("./folder/last")]
    )
    rows = _rows_of(data)
    assert [row.reason for row in rows if isinstance(row, Rejected)] == ["unsafe_member"] * len(
        evil
    )
    assert [row.key for row in rows if isinstance(row, Document)] == [
        "t.tar/first", "t.tar/folder/last",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_what_is_pickled_is_counted_and_never_read() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, ("touch /tmp/unpickled",))

    import pickle

    data = pickle.dumps(Evil())
    members = [*pair("a"), ("a.pyd", data), ("a.meta.pickle", data), ("a.npy", b"x"), *pair("b")]
    wanted = []
    draw = Draw(WebdatasetConfig(path=""))

    def watch(ending: str) -> bool:
        wanted.append((ending, draw.wanted(ending)))
        return wanted[-1][1]

    samples = list(
        read_samples(io.BytesIO(tar_bytes(members)), "t", wanted=watch, max_member_bytes=9999)
    )
    assert [sorted(sample.members) for sample in samples] == [["jpg", "json", "txt"]] * 2
    assert [name for name, read in wanted if not read] == ["pyd", "meta.pickle", "npy"]
    assert [draw.document(sample).metadata.get("pickled_members") for sample in samples] == [
        2,
        None,
    ]


def test_names_are_split_at_the_first_dot_and_hidden_ones_are_none() -> None:
    members = [
        ("./deep/er.dir/0001.JPG", b"x"), ("./deep/er.dir/0001.TXT", b"upper case"),
        ("0002.seg.png", b"mask"), ("0002.png", b"x"), ("0002.txt", b"not the mask"),
        ("._0002.png", b"resource fork"), ("__meta__", b"{}"),
        (os.fsdecode(b"caf\xe9.jpg"), b"x"), (os.fsdecode(b"caf\xe9.txt"), b"odd"),
        ("long/" + "n" * 300 + ".jpg", b"x"), ("long/" + "n" * 300 + ".txt", b"long"),
        ("0003.png", b"png"), ("0003.jpg", b"jpg"), ("0003.txt", b"the first ending wins"),
    ]  # fmt: skip
    rows = _rows_of(tar_bytes(members))
    assert list(_outcomes(rows).values()) == [
        "upper case", "not the mask", "odd", "long", "the first ending wins",
    ]  # fmt: skip
    assert rows[0].key == "t.tar/deep/er.dir/0001"
    assert [row.segments[-1].data for row in rows] == [b"x", b"x", b"x", b"x", b"jpg"]
    assert len(_outcomes(_rows_of(tar_bytes(members), image_extensions=("seg.png",)))) == 5


def test_the_caption_may_be_a_field_or_missing() -> None:
    members = [
        ("a.jpg", b"x"), ("a.json", b'{"text": "from the field", "n": 1}'), ("a.txt", b"other"),
        ("b.jpg", b"x"), ("b.json", b'{"text": 7}'),
        ("c.jpg", b"x"), ("c.json", b'{"text": null}'),
        ("d.jpg", b"x"), ("d.json", b'{"text": "\\ud83d"}'),
        ("e.jpg", b"x"),
    ]  # fmt: skip
    said = {"caption_field": "text", "metadata_fields": ()}
    assert list(_outcomes(_rows_of(tar_bytes(members), **said)).values()) == [
        "from the field", "[bad_caption]", "[missing_member]", "[bad_caption]", "[missing_member]",
    ]  # fmt: skip
    alone = _outcomes(_rows_of(tar_bytes(members), without_caption="image_only", **said))
    assert list(alone.values()) == ["from the field", "[bad_caption]", "", "[bad_caption]", ""]
    caption = {"caption_extension": "caption", "without_caption": "image_only"}
    (row,) = _rows_of(tar_bytes([("a.jpg", b"x"), ("a.caption", b"own")]), **caption)
    assert row.segments[0] == Text("own")


def test_a_tar_cut_anywhere_keeps_what_stands_before_and_names_the_rest() -> None:
    data = tar_bytes([row for index in range(4) for row in pair(f"{index}", "c" * 700)])
    whole = _rows_of(data)
    assert len(whole) == 4
    sample_bytes = 2 * 512 + 2 * (512 + 1024)
    for cut in [*range(1, 4 * sample_bytes + 512, 61), *range(512, 4 * sample_bytes + 512, 512)]:
        *kept, last = _rows_of(data[:cut], without_caption="image_only")
        assert isinstance(last, Rejected)
        assert last.reason == ("truncated_tar" if cut >= 512 else "not_a_tar"), cut
        # Whole is a sample that is followed by the header of another.
        num_kept = max(cut - 512, 0) // sample_bytes
        assert kept == whole[:num_kept]
        assert (f"the sample t.tar/{num_kept} is cut" in last.detail) == (cut >= 512)
    assert (
        "'1.jpg' holds 7 bytes, 4 are not there" in _rows_of(data[: sample_bytes + 515])[-1].detail
    )
    assert _rows_of(data[: 4 * sample_bytes + 512]) == whole


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated_tar"),
        (b"<html>not found</html>" * 100, "not_a_tar"),
        (os.urandom(5000), "not_a_tar"),
        (gzip.compress(tar_bytes(pair("a"))), "not_a_tar"),
    ],
)
def test_what_is_no_tar_is_one_named_row(data: bytes, reason: str) -> None:
    (row,) = _rows_of(data)
    assert isinstance(row, Rejected)
    assert row.reason == reason


def test_tars_joined_end_to_end_are_no_silent_loss() -> None:
    one, two = tar_bytes(pair("a")), tar_bytes(pair("b"))
    kept, last = _rows_of(one + two)
    assert isinstance(kept, Document)
    assert isinstance(last, Rejected)
    assert (last.key, last.reason) == (f"t.tar:{len(one)}", "trailing_data")
    assert len(_rows_of(one + b"\0" * 99_999)) == 1


def test_a_size_that_no_file_has_allocates_nothing() -> None:
    data = bytearray(tar_bytes(pair("a")))
    info = tarfile.TarInfo("b.jpg")
    info.size = 1 << 60
    header = info.tobuf(tarfile.GNU_FORMAT)
    (row,) = _rows_of(bytes(header) + bytes(data))
    assert row.reason == "truncated_tar"
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (row,) = _rows_of(long_name.tobuf(tarfile.GNU_FORMAT) + bytes(data))
    assert row.reason == "not_a_tar"


def test_packed_tars_and_empty_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"no file below this folder ends in one of \.tar"):
        list_shards(WebdatasetConfig(path=str(tmp_path)))
    write_tar(tmp_path / "a.tar", pair("a"))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar_bytes(pair("b"))))
    with pytest.raises(ArtifactError, match=r"b\.tar\.gz: packed tars are not read.*unpack it"):
        list_shards(WebdatasetConfig(path=str(tmp_path)))
    assert len(_rows(f"{tmp_path}/*.tar")) == 1


def test_identity_follows_tars_and_rules_and_metadata_stands_apart(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", pair("a"))
    write_tar(tmp_path / "b.tar", pair("b"))
    before = list_shards(WebdatasetConfig(path=str(tmp_path)))
    other = list_shards(WebdatasetConfig(path=str(tmp_path), metadata_fields=("width",)))
    assert [shard.identity for shard in other] == [shard.identity for shard in before]
    assert [shard.metadata for shard in other] != [shard.metadata for shard in before]
    assert identities(WebdatasetConfig(path=str(tmp_path), caption_field="x")) != [
        shard.identity for shard in before
    ]
    write_tar(tmp_path / "b.tar", pair("c"))
    write_tar(tmp_path / "c.tar", pair("d"))
    after = list_shards(WebdatasetConfig(path=str(tmp_path)))
    assert [old.identity == new.identity for old, new in zip(before, after, strict=False)] == [
        True, False,
    ]  # fmt: skip


def test_whether_sidecars_are_read_is_part_of_the_identity(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pair("a"))
    read, other, unread = (
        identities(WebdatasetConfig(path=str(tmp_path), metadata_fields=fields))
        for fields in (("width",), ("height",), ())
    )
    assert read == other != unread


def test_a_tar_is_held_a_sample_at_a_time(tmp_path: Path) -> None:
    image = os.urandom(1 << 20)
    members = [(f"{i:04}.{end}", image) for i in range(64) for end in ("jpg", "npy")]
    config = WebdatasetConfig(
        path=str(write_tar(tmp_path / "a.tar", members)), without_caption="image_only"
    )
    (shard,) = list_shards(config)
    tracemalloc.start()
    assert sum(isinstance(row, Document) for row in read(config, shard)) == 64
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak:,} bytes of a tar of 128 MiB"


def test_tars_on_s3_read_to_the_same_rows_as_on_disk(
    tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    write_tar(tmp_path / "raw" / "00000.tar", [row for i in range(30) for row in pair(f"{i}")])
    whole = tar_bytes(pair("x", "c" * 999) + pair("y"))
    (tmp_path / "raw" / "00001.tar").write_bytes(whole[:6000])
    store = open_store(f"s3://bucket/{tmp_path.name}")
    for entry in open_store(str(tmp_path / "raw")).list(""):
        store.write(entry.path, (tmp_path / "raw" / entry.path).read_bytes())
    rows = _rows(store.uri + "/{00000..00123}.tar")
    assert rows == _rows(tmp_path / "raw")
    assert len(rows) == 32


def test_what_the_webdataset_library_writes_is_the_folder_with_the_same_data(
    tmp_path: Path,
) -> None:
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path / "folder"
    folder.mkdir()
    pattern = str(tmp_path / "tars" / "%05d.tar")
    (tmp_path / "tars").mkdir()
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as writer:
        for index in range(20):
            image, caption = os.urandom(1000 + index), f"caf\u00e9 number {index}"
            (folder / f"{index:04}.png").write_bytes(image)
            (folder / f"{index:04}.txt").write_text(caption)
            writer.write(
                {"__key__": f"{index:04}", "png": image, "txt": caption, "json": {"width": index}}
            )
    config = image_folder.ImageFolderConfig(path=str(folder))
    plain = {
        row.key.removesuffix(".png"): [
            getattr(s, "text", getattr(s, "data", "")) for s in row.segments
        ]
        for shard in image_folder.list_shards(config)
        for row in image_folder.read(config, shard)
    }
    rows = _rows(tmp_path / "tars")
    assert len({row.key.split("/")[0] for row in rows}) == 3
    assert {
        row.key.split("/")[1]: [getattr(s, "text", getattr(s, "data", "")) for s in row.segments]
        for row in rows
    } == plain
    assert [row.metadata["width"] for row in rows] == list(range(20))


WHOLE = tar_bytes([
    *pair("a", "first", width=3),
    ("n" * 150 + ".jpg", b"x"), ("n" * 150 + ".txt", b"a long name"),
    (os.fsdecode(b"caf\xe9.jpg"), b"x" * 600), (os.fsdecode(b"caf\xe9.txt"), b"w"),
    link("l.jpg", tarfile.SYMTYPE),
    *pair("z", "last"),
])  # fmt: skip


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=12)), max_size=8
    ),
    cut=st.integers(0, len(WHOLE)) | st.none(),
    joined=st.binary(max_size=600),
)
def test_whatever_the_bytes_every_row_is_a_document_or_has_a_reason(
    edits: list[tuple[int, bytes]], cut: int | None, joined: bytes
) -> None:
    data = bytearray(WHOLE)
    for at, patch in edits:
        data[at : at + len(patch)] = patch
    _outcomes(_rows_of(bytes(data[:cut]) + joined))


_HEADER = st.fixed_dictionaries(
    {
        "name": st.text(max_size=8),
        "size": st.integers(-600, 1200) | st.integers(-(1 << 62), 1 << 62),
        "type": st.sampled_from([b"0", b"x", b"g", b"L", b"K", b"S", b"5", b"2", b"7", b"D"]),
        "body": st.binary(max_size=600)
        | st.sampled_from(
            [b"20 path=../up.jpg\n", b"18 size=99999999\n", b"17 GNU.sparse.major=1\n"]
        ),
    }
)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_HEADER, max_size=12))
def test_headers_that_lie_about_size_and_kind_do_no_harm(headers: list[dict]) -> None:
    """Checksums are right here: what tarfile believes is what is tried."""
    out = b""
    for fields in headers:
        info = tarfile.TarInfo(fields["name"])
        info.type, info.size = fields["type"], 0
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT, errors="surrogatepass")[:512])
        size = fields["size"]
        block[124:136] = (
            b"%011o\0" % size
            if 0 <= size < 8**11
            else (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
        )
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        body = fields["body"]
        out += bytes(block) + body + b"\0" * (-len(body) % 512)
    _outcomes(_rows_of(out + tar_bytes(pair("a"))))


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "width", "a"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_sidecar_says_the_sample_is_a_document_or_has_a_reason(sidecar: bytes) -> None:
    members = [("a.jpg", b"x"), ("a.json", sidecar), ("a.txt", b"w")]
    for caption_field in (None, "text"):
        rows = _rows_of(
            tar_bytes(members), caption_field=caption_field, metadata_fields=("a", "text")
        )
        assert len(rows) == 1
        json.dumps(dict(getattr(rows[0], "metadata", {})), allow_nan=False).encode()
        _outcomes(rows)
