"""`transfusion data inspect`: the right guess for every format, honest counts, and a wrong guess is one flag."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from data_pipelines.decode import Reject
from data_pipelines.inspect import thumbnails
from data_pipelines.inspect.command import inspect
from data_pipelines.inspect.findings import find
from data_pipelines.inspect.guess import guess
from data_pipelines.inspect.look import look_at
from data_pipelines.inspect.sample import sample
from data_pipelines.inspect.sheet import TILE_PX
from data_pipelines.limits import DecodeLimits
from data_pipelines.preparation import Prepared
from data_pipelines.sources.source import SOURCES, source_module
from tests.documents import picture
from tests.hostile_decoders import HostileThumbnails, marked
from transfusion.errors import ArtifactError, SpecError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def _jsonl(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number))


def _folder_with_metadata(root: Path) -> Path:
    _images(root, 6)
    rows = [{"file_name": f"{n}.png", "title": f"number {n}", "id": n} for n in range(6)]
    _jsonl(root / "metadata.jsonl", rows)
    return root


def _folder_with_csv(root: Path) -> Path:
    _images(root, 6)
    lines = [f'{n}.png,"number, {n}"' for n in range(6)]
    (root / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    return root


def _folder_with_parquet(root: Path) -> Path:
    _images(root, 6)
    columns = {"file_name": [f"{n}.png" for n in range(6)], "caption": ["said"] * 6}
    pq.write_table(pa.table(columns), root / "metadata.parquet")
    return root


def _folder_with_texts(root: Path) -> Path:
    _images(root, 6)
    for number in range(6):
        (root / f"{number}.txt").write_text(f"number {number}")
    return root


def _plain_folder(root: Path) -> Path:
    _images(root, 6)
    return root


def _parquet(root: Path) -> Path:
    root.mkdir(parents=True)
    for part in range(5):
        images = [{"bytes": picture(n), "path": f"{n}.png"} for n in range(6)]
        table = pa.table({"jpg": images, "caption": ["said"] * 6, "size": range(6)})
        pq.write_table(table, root / f"{part}.parquet")
    return root


def _tars(root: Path) -> Path:
    root.mkdir(parents=True)
    with tarfile.open(root / "00000.tar", "w") as tar:
        for number in range(6):
            side = json.dumps({"caption": "said", "width": 24}).encode()
            for suffix, data in (("png", picture(number)), ("txt", b"said"), ("json", side)):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root


def _obelics(root: Path) -> Path:
    _images(root / "images", 3)
    row = {"texts": ["a", None, None], "images": [None, "0.png", "1.png"]}
    _jsonl(root / "pages.jsonl", [row] * 4)
    return root


def _mmc4(root: Path) -> Path:
    _images(root / "images", 3)
    info = {"image_name": "2.png", "matched_text_index": 0, "matched_sim": 0.3}
    _jsonl(root / "docs.jsonl.gz", [{"text_list": ["a", "b"], "image_info": [info]}] * 4)
    return root


def _edits(root: Path) -> Path:
    _images(root / "pictures", 3)
    row = {"source": "pictures/0.png", "target": "pictures/1.png", "instruction": "turn it"}
    _jsonl(root / "edits.jsonl", [{**row, "text": "a long description of it all"}] * 4)
    return root


def _edits_in_parquet(root: Path) -> Path:
    root.mkdir(parents=True)
    columns = {
        "original_image": [picture(0)] * 4,
        "edit_prompt": ["turn it"] * 4,
        "edited_image": [picture(1)] * 4,
    }
    pq.write_table(pa.table(columns), root / "train.parquet")
    return root


def _text(root: Path) -> Path:
    _jsonl(root / "c4.jsonl.gz", [{"id": "x1", "content": "words " * 9, "url": "http://x"}] * 9)
    return root


def _lines(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "book.txt").write_text("one line\nanother line\n\nthe third\n")
    return root


CASES: dict[str, tuple[Any, str, dict[str, Any], int]] = {
    "metadata": (_folder_with_metadata, "image_folder", {"caption_column": "title"}, 6),
    "csv": (_folder_with_csv, "image_folder", {}, 6),
    "metadata_in_parquet": (_folder_with_parquet, "image_folder", {"caption_column": "caption"}, 6),
    "texts": (_folder_with_texts, "image_folder", {}, 6),
    "images": (_plain_folder, "image_folder", {"without_caption": "image_only"}, 6),
    "parquet": (_parquet, "parquet_images", {"image_column": "jpg", "caption_column": "caption"}, 30),
    "tars": (_tars, "webdataset", {}, 6),
    "obelics": (_obelics, "interleaved", {"layout": "obelics", "images": "ROOT/images"}, 4),
    "mmc4": (_mmc4, "interleaved", {"layout": "mmc4", "images": "ROOT/images"}, 4),
    "edits": (_edits, "edits",
              {"source_column": "source", "target_column": "target", "images": "ROOT"}, 4),
    "edits_in_parquet": (_edits_in_parquet, "edits",
                         {"source_column": "original_image", "instruction_column": "edit_prompt",
                          "target_column": "edited_image"}, 4),
    "text": (_text, "text", {"text_column": "content"}, 9),
    "lines": (_lines, "text", {}, 3),
}  # fmt: skip
"""What makes the input, the right source and config, and how many rows a sample of it has."""


@pytest.mark.parametrize("name", CASES)
def test_the_guess_is_right_and_reads_the_sample(name: str, tmp_path: Path) -> None:
    make, source, config, num_rows = CASES[name]
    root = make(tmp_path / "in")
    look = look_at(str(root))
    guessed = guess(look)
    expected = {k: str(v).replace("ROOT", str(root)) for k, v in config.items()}
    assert (guessed.source, dict(guessed.config)) == (source, expected)
    assert guessed.why
    found = find(
        sample(look, guessed.source, guessed.config, num_rows=1000), num_examples=3, budget_s=60.0
    )
    assert (found.num_rows, found.num_documents) == (num_rows, num_rows)
    assert not found.rejects + found.undecodable
    assert len(found.examples) == 3
    assert bool(found.tiles) == (source != "text")


@pytest.mark.parametrize("name", CASES)
def test_the_config_that_it_shows_reads_everything(name: str, tmp_path: Path) -> None:
    """Pasted into a job, it gives as many documents as there are, under the keys that the sample showed."""
    make, source, _, _ = CASES[name]
    root = make(tmp_path / "in")
    look = look_at(str(root))
    guessed = guess(look)
    module = source_module(SOURCES[source])
    whole = module.STAGE.config.model_validate_json(
        json.dumps({"path": str(root), **guessed.config})
    )
    keys = {row.key for shard in module.list_shards(whole) for row in module.read(whole, shard)}
    shown = {row.key for _, row in sample(look, source, guessed.config, num_rows=5)}
    assert len(shown) == min(5, len(keys))
    assert shown <= keys


def test_what_is_printed_says_the_stage_the_drops_and_where_the_sheet_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    root = _folder_with_metadata(tmp_path / "in")
    (root / "2.png").write_bytes(b"<html>")
    with (root / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "none.png", "title": "[bold]\\u001b[31mx"}\n')
    out = tmp_path / "out"
    inspect(str(root), source=None, changes=(), num_rows=100, num_examples=2, out=out)
    told = capsys.readouterr().out
    assert "\x1b" not in told
    lines = told.splitlines()
    start = next(at for at, line in enumerate(lines) if line.strip() == "image_folder:")
    stage = yaml.safe_load("\n".join(lines[start : start + 5]))["image_folder"]
    assert stage == {
        "uses": "data_pipelines.sources.image_folder",
        "config": {"path": str(root), "caption_column": "title"},
    }
    for line in ("title  str", "documents 6", "images decoded 5 of 6", "not_an_image 1 2.png: 6 bytes",
                 "missing_file 1 metadata.jsonl:7:", "text number 0", "contact_sheet.png"):  # fmt: skip
        assert any(
            line.split() == found.split()[: len(line.split())] or line in found for found in lines
        ), (
            line,
            told,
        )
    sheet = Picture.open(out / "contact_sheet.png")
    assert sheet.width > 800
    assert sheet.convert("RGB").getpixel((20 + 112, 54 + 112)) == (0, 0, 40)


def test_an_image_that_ends_its_decoder_is_told_of_and_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = HostileThumbnails(DecodeLimits(decode_cpu_s=0.3), ((TILE_PX, TILE_PX),))
    monkeypatch.setattr(thumbnails, "THUMBNAILS", hostile)
    root = tmp_path / "pictures"
    _images(root, 12)
    faults = ("segfault", "abort", "exit", "killed", "spin")
    for number, fault in enumerate(faults):
        (root / f"{2 * number}.png").write_bytes(marked(picture(2 * number), fault))
    for number in range(12):
        (root / f"{number}.txt").write_text("said")
    inspect(str(root), source=None, changes=(), num_rows=100, num_examples=12, out=tmp_path / "out")
    assert capsys.readouterr().out.count("24 x 16") == 7
    assert (tmp_path / "out" / "contact_sheet.png").is_file()
    look = look_at(str(root))
    rows = sample(look, "image_folder", {}, num_rows=100)
    found = find(rows, num_examples=1, budget_s=60.0)
    assert found.undecodable == {
        "decoder_crashed": 3, "decoder_timeout": 1, "decoder_killed": 1,
    }  # fmt: skip
    assert found.num_images == 12
    assert len(found.sides_px) == 7


def test_a_thumbnail_is_of_the_whole_image_and_its_facts_are_too() -> None:
    data = io.BytesIO()
    wide = Picture.new("RGB", (600, 300), (10, 200, 30))
    wide.paste((250, 0, 0), (0, 0, 300, 300))
    wide.save(data, "PNG")
    made = thumbnails.thumbnail(data.getvalue())
    assert isinstance(made, Prepared)
    assert made.pixels.shape == (TILE_PX // 2, TILE_PX, 3)
    assert tuple(made.pixels[50, 5]) == (250, 0, 0)
    assert tuple(made.pixels[50, -5]) == (10, 200, 30)
    assert (made.facts.original_height, made.facts.original_width) == (300, 600)
    reject = thumbnails.thumbnail(b"no image")
    assert isinstance(reject, Reject)
    assert reject.reason == "not_an_image"


def test_a_wrong_guess_is_one_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _folder_with_texts(tmp_path / "in")
    inspect(
        str(root),
        source="text",
        changes=["txt_documents=file"],
        num_rows=9,
        num_examples=1,
        out=tmp_path,
    )
    told = capsys.readouterr().out
    assert "txt_documents: file" in told
    assert "documents             6" in told
    with pytest.raises(SpecError, match="did you mean 'text'"):
        inspect(str(root), source="txet", changes=(), num_rows=9, num_examples=1, out=tmp_path)
    with pytest.raises(SpecError, match="txt_document: unknown key; did you mean 'txt_documents'"):
        inspect(
            str(root),
            source="text",
            changes=["txt_document=x"],
            num_rows=9,
            num_examples=1,
            out=tmp_path,
        )
    with pytest.raises(SpecError, match="must read key=value"):
        inspect(str(root), source="text", changes=["x"], num_rows=9, num_examples=1, out=tmp_path)


def test_what_no_source_reads_is_told_with_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"no source is known that reads this: 1 \.mp4.*--as"):
        guess(look_at(str(tmp_path)))
    with pytest.raises(ArtifactError, match="no such file or folder"):
        look_at(str(tmp_path / "none"))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damaged_input_is_read_or_told(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = CASES[name][0](tmp_path_factory.mktemp("damaged") / "in")
    files = sorted(file for file in root.rglob("*") if file.is_file())
    for file in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3)):
        raw = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        file.write_bytes(raw)
    try:
        look = look_at(str(root))
        guessed = guess(look)
        rows = sample(look, guessed.source, guessed.config, num_rows=9)
        told = f"{root}: {find(rows, num_examples=1, budget_s=60.0).num_rows} rows"
    except ArtifactError as error:
        told = str(error)
    assert str(root) in told


def test_only_a_part_of_a_large_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_pipelines.sources import files

    root = tmp_path / "in"
    _images(root, 300)
    _jsonl(root / "metadata.jsonl", [{"file_name": f"{n}.png", "text": "x"} for n in range(300)])
    hashed = []
    digest = files.hashlib.file_digest
    monkeypatch.setattr(
        files.hashlib, "file_digest", lambda file, kind: hashed.append(1) or digest(file, kind)
    )
    look = look_at(str(root))
    rows = list(sample(look, "image_folder", {}, num_rows=20))
    assert len(rows) == 20
    assert len(hashed) <= 25


def test_from_the_command_line_without_torch_and_ray(tmp_path: Path) -> None:
    root = _obelics(tmp_path / "in")
    code = (
        "import sys; from transfusion.cli import main\n"
        "sys.argv = ['transfusion', 'data', 'inspect', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as done: assert not done.code, done.code\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), "--out", str(tmp_path / "out"), "--set", "missing_image=reject"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "missing_image: reject" in done.stdout
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_a_bucket_is_inspected_as_a_folder_is(
    s3_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfusion.storage.store import open_store

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    for name in ("metadata", "parquet", "edits", "tars"):
        make, source, config, num_rows = CASES[name]
        root = make(tmp_path / name)
        url = f"s3://bucket/inspect/{name}"
        store = open_store(url)
        for file in root.rglob("*"):
            if file.is_file():
                store.write(str(file.relative_to(root)), file.read_bytes())
        look = look_at(url)
        guessed = guess(look)
        assert guessed.source == source
        assert dict(guessed.config) == {k: str(v).replace("ROOT", url) for k, v in config.items()}
        found = find(
            sample(look, source, guessed.config, num_rows=100), num_examples=3, budget_s=60.0
        )
        assert (found.num_documents, found.rejects.total()) == (num_rows, 0)
