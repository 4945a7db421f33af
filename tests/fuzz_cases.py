"""Files for the fuzzing of adapters, each drawn from a random generator, and what must be true of their rows."""

import csv
import gzip
import io
import json
import random
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.documents import Document, Rejected
from tests.documents import picture

Rows = Sequence[Document | Rejected]
Check = Callable[[Rows], None]

ENDINGS = ("jpg", "png", "txt", "json", "JPG", "cls", "pyd", "")
WORDS = ("a cat", "caf\u00e9 \U0001f600", "", "  ", "x\0y", "line\nline", "n" * 300)
"""Texts as they occur, and some that must not pass."""


@dataclass(frozen=True)
class Case:
    """One input: the file, how it is read, and what its rows must fulfil beyond being rows.

    `IMAGES` in the config stands for a folder that holds `0.png` to `3.png`.
    """

    name: str
    data: bytes
    source: str
    config: Mapping[str, Any] = field(default_factory=dict)
    check: Check = lambda rows: None


def mutated(
    rng: random.Random, data: bytes, other: bytes = b"", *, in_place: bool = False
) -> bytes:
    """Bytes changed, cut out, repeated, or put in from another file; in place what follows stays where it was."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.choice((0, 1, 4) if in_place else range(7)):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                if at < len(out):
                    out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + rng.choice((1, 4, 64, 512))]
            case 3:
                out[at:at] = out[at : at + rng.choice((1, 4, 64, 512))]
            case 4:
                numbers = (b"\xff" * 4, b"\0" * 8, b"\x7f\xff\xff\xff", b"\0\0\0\x80")
                out[at : at + 4] = rng.choice(numbers)
            case 5:
                start = rng.randrange(len(other) + 1)
                out[at:at] = other[start : start + rng.randrange(1, 200)]
            case 6:
                del out[at:]
    return bytes(out)


def any_value(rng: random.Random, depth: int = 2) -> Any:
    """What JSON can hold."""
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice((0, 1, -1, 2**70, 1e308, float("nan"), float("inf"))),
        lambda: rng.choice((*WORDS, "\ud800", "0.png", "../0.png", "http://x/0.png")),
    ]
    if depth:
        kinds += [
            lambda: [any_value(rng, depth - 1) for _ in range(rng.randrange(4))],
            lambda: {
                rng.choice(
                    ("bytes", "path", "image_name", "matched_text_index", "\ud800")
                ): any_value(rng, depth - 1)
                for _ in range(rng.randrange(4))
            },
        ]
    return rng.choice(kinds)()


def nearly(rng: random.Random, value: Any) -> Any:
    """The value, and now and then another."""
    return any_value(rng) if rng.random() < 0.1 else value


# Tars


def tar_case(rng: random.Random) -> Case:
    """Samples in a tar: headers whose checksums are right whatever they say, or bytes changed anywhere."""
    check: Check = _nothing
    if rng.random() < 0.5:
        data = _lying_tar(rng)
    else:
        samples = rng.randrange(1, 8)
        whole = _plain_tar(samples)
        data = mutated(rng, whole, whole)
        check = _losses_are_told(samples)
    config = {"caption_field": rng.choice((None, None, "caption")), "max_member_bytes": 5000}
    if config["caption_field"]:
        check = _nothing
    return Case("a.tar", data, "webdataset", config, check)


def _plain_tar(samples: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(samples):
            sidecar = json.dumps({"width": 24, "caption": "said"}).encode()
            for ending, data in (("jpg", picture(number)), ("json", sidecar), ("txt", b"said")):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _lying_tar(rng: random.Random) -> bytes:
    out = bytearray()
    for _ in range(rng.randrange(1, 12)):
        stem = rng.choice(("a", "b", "a/b", "../a", "/a", ".", "n" * 90, "caf\u00e9", "__x__"))
        info = tarfile.TarInfo(f"{stem}.{rng.choice(ENDINGS)}")
        info.type = rng.choice((*[b"0"] * 8, b"\0", b"x", b"g", b"L", b"K", b"S", b"5", b"2", b"7"))
        body = rng.choice(
            (b"said", rng.randbytes(rng.randrange(700)), json.dumps(any_value(rng)).encode(),
             b"20 path=../up.jpg\n", b"18 size=99999999\n", b"17 GNU.sparse.major=1\n", b"")
        )  # fmt: skip
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT, errors="surrogatepass")[:512])
        size = len(body) if rng.random() < 0.8 else rng.choice((-600, 1, 1200, 1 << 62))
        block[124:136] = (
            b"%011o\0" % size
            if 0 <= size < 8**11
            else (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
        )
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        out += bytes(block) + body + b"\0" * (-len(body) % 512)
    out += b"\0" * 512 * rng.randrange(4)
    return bytes(out)


def _losses_are_told(count: int) -> Check:
    def check(rows: Rows) -> None:
        whole = sum(isinstance(row, Document) for row in rows)
        assert whole >= count or len(rows) > whole, f"{whole} of {count} samples and not a word"

    return check


def _nothing(rows: Rows) -> None:
    del rows


# Lines


def _text_line(rng: random.Random) -> bytes:
    row = nearly(rng, {"text": nearly(rng, rng.choice(WORDS)), "n": any_value(rng)})
    return json.dumps(row).encode()


def text_case(rng: random.Random) -> Case:
    """Lines of JSON or of text, plain or packed, or a Parquet column; damaged before or after packing."""
    kind = rng.choice(("jsonl", "txt"))
    if rng.random() < 0.2:
        return parquet_case(rng, source="text", columns=("text",))
    lines = [
        _text_line(rng) if kind == "jsonl" else rng.choice(WORDS).encode()
        for _ in range(rng.randrange(12))
    ]
    data = (b"\xef\xbb\xbf" if rng.random() < 0.1 else b"") + b"\n".join(lines)
    if rng.random() < 0.5:
        data = mutated(rng, data, b'\r\n\xef\xbb\xbf"\xff\\ud800')
    config: dict[str, Any] = {
        "metadata_columns": ["n"],
        "max_document_bytes": rng.choice((200, 9999)),
    }
    packing = rng.choice(("", "", "gz", "zst"))
    if not packing:
        return Case(f"a.{kind}", data, "text", config, _a_row_a_line(data))
    packed = gzip.compress(data, mtime=0) if packing == "gz" else zstandard(data)
    damaged = mutated(rng, packed, packed) if rng.random() < 0.6 else packed
    check = _a_row_a_line(data) if damaged == packed else _no_line_goes_unseen(data)
    if packing == "zst" and not packed.startswith(damaged):
        check = _nothing
    return Case(f"a.{kind}.{packing}", damaged, "text", config, check)


def zstandard(data: bytes) -> bytes:
    """One frame, without a checksum: what is altered in it may pass, what is cut off may not."""
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return bytes(packed.getvalue().to_pybytes())


def num_lines(data: bytes) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))


def _a_row_a_line(data: bytes) -> Check:
    def check(rows: Rows) -> None:
        assert len(rows) == num_lines(data), f"{len(rows)} rows of {num_lines(data)} lines"

    return check


def _no_line_goes_unseen(data: bytes) -> Check:
    def check(rows: Rows) -> None:
        told = any(isinstance(row, Rejected) and row.reason == "truncated" for row in rows)
        seen = len(rows) - told
        assert told or seen >= num_lines(data), f"{seen} rows of {num_lines(data)} and not a word"

    return check


# Pages and edits


def interleaved_case(rng: random.Random) -> Case:
    """Pages of either layout, in JSON beside a folder or in Parquet; lists that do not fit among them."""
    layout = rng.choice(("obelics", "mmc4"))
    config = {"layout": layout, "missing_image": rng.choice(("drop", "reject")), "max_images": 5}
    if rng.random() < 0.3:
        columns = ("texts", "images") if layout == "obelics" else ("text_list", "image_info")
        return parquet_case(rng, source="interleaved", columns=columns, **config)
    page = _obelics if layout == "obelics" else _mmc4
    rows = [nearly(rng, page(rng)) for _ in range(rng.randrange(8))]
    return _lines_beside_a_folder(rng, "interleaved", rows, config)


def _obelics(rng: random.Random) -> dict[str, Any]:
    places = [rng.random() < 0.5 for _ in range(rng.randrange(6))]
    texts = [nearly(rng, rng.choice(WORDS) if text else None) for text in places]
    images = [nearly(rng, None if text else f"{rng.randrange(4)}.png") for text in places]
    return {"texts": nearly(rng, texts), "images": nearly(rng, images)}


def _mmc4(rng: random.Random) -> dict[str, Any]:
    texts = [nearly(rng, rng.choice(WORDS)) for _ in range(rng.randrange(5))]
    infos = [
        nearly(
            rng,
            {
                "image_name": nearly(rng, f"{rng.randrange(4)}.png"),
                "matched_text_index": nearly(rng, rng.randrange(5)),
            },
        )
        for _ in range(rng.randrange(4))
    ]
    return {"text_list": nearly(rng, texts), "image_info": nearly(rng, infos)}


def edits_case(rng: random.Random) -> Case:
    """Two images and an instruction, in JSON beside a folder or in Parquet."""
    if rng.random() < 0.4:
        columns = ("source_image", "instruction", "target_image")
        return parquet_case(rng, source="edits", columns=columns)
    rows = [
        nearly(
            rng,
            {
                "source_image": nearly(rng, f"{rng.randrange(4)}.png"),
                "instruction": nearly(rng, rng.choice(WORDS)),
                "target_image": nearly(rng, f"{rng.randrange(4)}.png"),
            },
        )
        for _ in range(rng.randrange(8))
    ]
    return _lines_beside_a_folder(rng, "edits", rows, {})


def _lines_beside_a_folder(
    rng: random.Random, source: str, rows: Sequence[Any], config: Mapping[str, Any]
) -> Case:
    data = b"\n".join(json.dumps(row).encode() for row in rows)
    if rng.random() < 0.4:
        data = mutated(rng, data, data)
    settings = {**config, "images": "IMAGES"}
    return Case("a.jsonl", data, source, settings, _a_row_a_line(data))


# Parquet


def _column(rng: random.Random, name: str, count: int) -> pa.Array:
    """A column as it should be, or of another type altogether."""
    images = [picture(n) for n in range(count)]
    fitting: dict[str, Callable[[], pa.Array]] = {
        "image": lambda: rng.choice(
            (
                pa.array(images, rng.choice((pa.binary(), pa.large_binary()))),
                pa.array([{"bytes": data, "path": None} for data in images]),
                pa.array([f"{n % 5}.png" for n in range(count)]),
            )
        ),
        "text": lambda: pa.array([nearly_text(rng) for _ in range(count)], pa.string()),
        "texts": lambda: pa.array([["a", None][: n % 3] for n in range(count)], pa.list_(pa.string())),
        "images": lambda: pa.array([[None, images[n]][: n % 3] for n in range(count)], pa.list_(pa.binary())),
        "image_info": lambda: pa.array(
            [[{"bytes": images[n], "matched_text_index": 0}] * (n % 2) for n in range(count)]
        ),
    }  # fmt: skip
    role = {"text_list": "texts", "instruction": "text"}.get(name, name)
    role = "image" if role.endswith("_image") else role
    if rng.random() < 0.75:
        return fitting[role]()
    odd = (
        pa.array([2**62] * count, pa.timestamp("ms")),
        pa.array([-(2**31)] * count, pa.date32()),
        pa.array([float("nan")] * count, pa.float32()),
        pa.nulls(count),
        pa.array(["a", "b"] * count)[:count].dictionary_encode(),
        pa.array([[("k", 1)]] * count, pa.map_(pa.string(), pa.int64())),
        pa.array([{"bytes": None, "path": 3}] * count),
        pa.array([b"\xff\xfe"] * count),
        pa.array([10**9] * count, pa.duration("us")),
        pa.array([True, None] * count)[:count],
    )
    return rng.choice(odd)


def nearly_text(rng: random.Random) -> str | None:
    """A caption, or none."""
    return rng.choice((*WORDS, None))


def parquet_case(
    rng: random.Random,
    *,
    source: str = "parquet_images",
    columns: Sequence[str] = ("image", "text"),
    **config: Any,
) -> Case:
    """A table with columns that fit or do not, written in some way, then damaged or not."""
    count = rng.choice((0, 1, 7, 7, 30))
    named = [name for name in columns if rng.random() > 0.02]
    table = pa.table({name: _column(rng, name, count) for name in named} or {"x": [1]})
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        compression=rng.choice(("none", "snappy", "zstd", "gzip", "lz4")),
        use_dictionary=rng.random() < 0.5,
        row_group_size=rng.choice((3, 100)),
        data_page_version=rng.choice(("1.0", "2.0")),
        data_page_size=rng.choice((64, 1 << 20)),
        write_page_checksum=rng.random() < 0.5,
    )
    data = out.getvalue()
    if rng.random() < 0.7:
        data = mutated(rng, data, data, in_place=rng.random() < 0.6)
    if source in ("interleaved", "edits"):
        config["images"] = "IMAGES"
    return Case("a.parquet", data, source, config, _a_row_a_row(data))


def _a_row_a_row(data: bytes) -> Check:
    def check(rows: Rows) -> None:
        # The text source tells so of a whole file, for which the others stop.
        if len(rows) == 1 and isinstance(rows[0], Rejected) and rows[0].reason in _WHOLE_FILE:
            return
        said = pq.read_metadata(io.BytesIO(data)).num_rows
        assert len(rows) == said, f"{len(rows)} rows of {said}"

    return check


_WHOLE_FILE = ("broken_parquet", "missing_column", "not_text")

# Folders


def folder_case(rng: random.Random) -> Case:
    """Rows of metadata beside the files that they name."""
    rows = [
        {"file_name": f"{rng.randrange(4)}.png", "text": rng.choice(WORDS), "n": rng.random()}
        for _ in range(rng.randrange(6))
    ]
    kind = rng.choice(("jsonl", "csv", "parquet"))
    if kind == "jsonl":
        odd = [nearly(rng, {name: nearly(rng, row[name]) for name in row}) for row in rows]
        data = b"\n".join(json.dumps(row).encode() for row in odd)
    elif kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ("file_name", "text", "n"))
        writer.writeheader()
        writer.writerows(rows)
        data = text.getvalue().encode()
    else:
        out = io.BytesIO()
        table = pa.Table.from_pylist(rows) if rows else pa.table({"file_name": pa.nulls(3)})
        pq.write_table(table, out, data_page_size=64, use_dictionary=False)
        data = out.getvalue()
    if rng.random() < 0.6:
        data = mutated(rng, data, data, in_place=rng.random() < 0.5)
    config = {"path": "IMAGES", "metadata_columns": ["n"]}
    return Case(f"metadata.{kind}", data, "image_folder", config, _every_image_is_told_of)


def _every_image_is_told_of(rows: Rows) -> None:
    missing = {f"{number}.png" for number in range(4)} - {row.key for row in rows}
    assert not missing, f"not a word of {missing}"


CASES: Mapping[str, Callable[[random.Random], Case]] = {
    "webdataset": tar_case,
    "text": text_case,
    "parquet_images": parquet_case,
    "interleaved": interleaved_case,
    "edits": edits_case,
    "image_folder": folder_case,
}
