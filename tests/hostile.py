"""Files that break pipelines, each with what must become of it: made by hand, for any test to use.

Good images show four quadrants of known colours, so that a wrong turn, crop, scale or colour shows in some corner.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

QUADRANTS = ((200, 30, 40), (40, 170, 60), (30, 60, 210), (240, 220, 200))
"""Top left, top right, bottom left, bottom right."""

SPECIAL_SPELLINGS = "<s> </s> <BOI> <EOI> <boi> <eoi> <pad> <unk> [INST] <|image|> <0x0A>"


@dataclass(frozen=True)
class HostileImage:
    """A file and its outcome: a reason, or the colours of its quadrants."""

    name: str
    data: bytes
    reason: str | None = None
    quadrants: tuple[tuple[int, int, int], ...] = QUADRANTS
    tolerance: int = 0


@dataclass(frozen=True)
class HostileLine:
    """A line of a JSONL file and its outcome: a reason, or the text it holds."""

    data: bytes
    reason: str | None = None
    text: str | None = None


def quadrant_pixels(colors: tuple[tuple[int, ...], ...] = QUADRANTS, size: int = 64) -> np.ndarray:
    """A square of four flat quadrants."""
    pixels = np.zeros((size, size, len(colors[0])), np.uint8)
    half = size // 2
    pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:] = colors
    return pixels


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The colour in the middle of each quadrant."""
    near, far = pixels.shape[0] // 4, 3 * pixels.shape[0] // 4
    places = ((near, near), (near, far), (far, near), (far, far))
    return [tuple(int(value) for value in pixels[place]) for place in places]


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bad_images() -> Iterator[HostileImage]:
    """Files that must be rejected, each for its reason."""
    good = Image.fromarray(quadrant_pixels())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    png, jpeg = _saved(noise, "PNG"), _saved(noise, "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0x10
    text = PngInfo()
    text.add_text("Comment", "a" * (80 << 20), zip=True)
    nowhere = Image.fromarray(np.full((32, 32), np.nan, np.float32))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    for reason, files in {
        "not_an_image": {
            "empty.jpg": b"",
            "page.jpg": b"<!DOCTYPE html><html>404 Not Found</html>",
            "random.png": bytes(range(255, 0, -1)) * 9,
        },
        "unsupported_format": {
            "script.png": postscript,
            "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
            "layers.png": b"8BPS\0\1" + bytes(64),
            "icon.png": _saved(good, "ICO"),
        },
        "truncated": {
            "half.jpg": jpeg[: len(jpeg) // 2],
            "half.png": png[: len(png) // 2],
            "header.png": png[:20],
            "flipped.png": bytes(flipped),
            "half.webp": _saved(noise, "WEBP")[:300],
        },
        "too_many_pixels": {
            "bomb.png": _blank_png(20_000, 20_000),
            "wide.png": _blank_png(11_000, 11_000),
        },
        "oversized_metadata": {"text_bomb.png": _saved(good, "PNG", pnginfo=text)},
        "too_small": {
            "pixel.png": _saved(Image.new("RGB", (1, 1)), "PNG"),
            "thread.png": _saved(Image.new("RGB", (1, 20_000)), "PNG"),
        },
        "too_elongated": {"ribbon.png": _saved(Image.new("RGB", (2000, 20)), "PNG")},
        "not_finite": {"nowhere.tif": _saved(nowhere, "TIFF")},
    }.items():
        for name, data in files.items():
            yield HostileImage(name, data, reason)


def good_images() -> Iterator[HostileImage]:
    """Files that Pillow's plain `convert("RGB")` gets wrong, or that look suspicious and are fine."""
    good = Image.fromarray(quadrant_pixels())
    black = Image.new("RGB", good.size, "black")
    animated = {"save_all": True, "append_images": [black]}
    yield HostileImage("plain.png", _saved(good, "PNG"))
    yield HostileImage("plain.webp", _saved(good, "WEBP", lossless=True))
    yield HostileImage("plain.bmp", _saved(good, "BMP"))
    yield HostileImage("really_a.jpg", _saved(good, "PNG"))
    yield HostileImage("moving.webp", _saved(good, "WEBP", lossless=True, **animated))
    yield HostileImage("moving.png", _saved(good, "PNG", **animated))
    yield HostileImage("pages.tif", _saved(good, "TIFF", **animated))
    yield from _palettes(good)
    yield from _greys()
    yield from _transparent()
    yield from _profiles(good)
    for orientation in range(1, 9):
        yield turned(orientation)


def _palettes(good: Image.Image) -> Iterator[HostileImage]:
    palette = good.quantize(colors=4)
    black = Image.new("RGB", good.size, "black").quantize(4)
    hole = _saved(palette, "PNG", transparency=palette.getpixel((0, 0)))
    yield HostileImage("palette.png", _saved(palette, "PNG"), tolerance=8)
    yield HostileImage("hole.png", hole, None, ((255,) * 3, *QUADRANTS[1:]), 8)
    moving = _saved(palette, "GIF", save_all=True, append_images=[black])
    yield HostileImage("moving.gif", moving, tolerance=8)


def _greys() -> Iterator[HostileImage]:
    levels = (0, 80, 160, 255)
    greys = quadrant_pixels(tuple((level,) for level in levels))[..., 0]
    for name, kind, values in (
        ("deep.png", "PNG", greys.astype(np.uint16) * 257),
        ("deep.tif", "TIFF", greys.astype(np.uint16) * 257),
        ("float.tif", "TIFF", (greys / 255).astype(np.float32)),
        ("signed.tif", "TIFF", greys.astype(np.int32) * 100 - 50),
        ("grey.png", "PNG", greys),
    ):
        data = _saved(Image.fromarray(values), kind)
        yield HostileImage(name, data, None, tuple((level,) * 3 for level in levels))
    alpha = quadrant_pixels(((0,), (255,), (255,), (255,)))
    data = _saved(Image.fromarray(np.dstack([greys, alpha]), "LA"), "PNG")
    on_white = ((255,) * 3, (80,) * 3, (160,) * 3, (255,) * 3)
    yield HostileImage("grey_alpha.png", data, None, on_white)


def _transparent() -> Iterator[HostileImage]:
    alpha = quadrant_pixels(((255,), (0,), (128,), (255,)))
    data = _saved(Image.fromarray(np.dstack([quadrant_pixels(), alpha])), "PNG")
    # 128 of 255 over white, by hand: (30 * 128 + 255 * 127) / 255 = 142, and so on.
    on_white = (QUADRANTS[0], (255, 255, 255), (142, 157, 232), QUADRANTS[3])
    yield HostileImage("hidden.png", data, None, on_white, 1)


def _profiles(good: Image.Image) -> Iterator[HostileImage]:
    primaries = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
    swapped = ((0, 255, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255))
    data = _saved(Image.fromarray(quadrant_pixels(primaries)), "PNG", icc_profile=swapped_profile())
    yield HostileImage("profile.png", data, None, swapped, 1)
    broken = _saved(good, "PNG", icc_profile=b"no profile" * 20)
    yield HostileImage("broken_profile.png", broken)
    yield HostileImage("srgb_profile.png", _saved(good, "PNG", icc_profile=_srgb()))
    inks = ((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255))
    colors = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))
    cmyk = Image.fromarray(quadrant_pixels(inks), "CMYK")
    yield HostileImage("cmyk.tif", _saved(cmyk, "TIFF"), None, colors)
    jpeg = _saved(cmyk, "JPEG", quality=100, subsampling=0)
    yield HostileImage("cmyk.jpg", jpeg, None, colors, 4)


def turned(orientation: int) -> HostileImage:
    """A JPEG as a camera held in that orientation stores it; upright it shows the quadrants.

    The EXIF standard says which side of the scene the stored row 0 and column 0 are.
    """
    upright = quadrant_pixels()
    across = upright.transpose(1, 0, 2)
    stored = {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: across,  # left, top
        6: across[::-1],  # right, top
        7: across[::-1, ::-1],  # right, bottom
        8: across[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _saved(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", quality=95, exif=exif)
    return HostileImage(f"turned_{orientation}.jpg", data, tolerance=6)


def swapped_profile() -> bytes:
    """The sRGB profile with the primaries of red and green exchanged, under another name."""
    profile = bytearray(_srgb().replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    places = {}
    for index in range(struct.unpack(">I", profile[128:132])[0]):
        entry = 132 + 12 * index
        places[bytes(profile[entry : entry + 4])] = struct.unpack(
            ">II", profile[entry + 4 : entry + 12]
        )
    red, green = (
        slice(offset, offset + size) for offset, size in (places[b"rXYZ"], places[b"gXYZ"])
    )
    profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile)


def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _blank_png(width: int, height: int) -> bytes:
    """A valid black-and-white PNG, a few kilobytes however large it unfolds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    deflate = zlib.compressobj(9)
    rows = bytes(1 + (width + 7) // 8) * 100
    packed = b"".join(deflate.compress(rows) for _ in range(height // 100)) + deflate.flush()
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def lines() -> list[HostileLine]:
    """Lines of a JSONL file with the column `text`, good and bad."""
    kept = (
        "plain text",
        SPECIAL_SPELLINGS,
        "\u0645\u0631\u062d\u0628\u0627 right to left",
        "e\u0301 combining, \U0001f468\u200d\U0001f469\u200d\U0001f467 joined",
        "two\nlines\tand a tab",
        "\ufeffmarked inside",
    )
    good = [HostileLine(json.dumps({"text": text}).encode(), None, text) for text in kept]
    raw = [HostileLine(json.dumps({"text": t}, ensure_ascii=False).encode(), None, t) for t in kept]
    bad = {
        b'{"text": "caf\xe9"}': "invalid_utf8",
        b'{"text": "a\\u0000b"}': "nul_character",
        b'{"text": "half \\ud83d"}': "lone_surrogate",
        b'{"text": ""}': "empty",
        b'{"text": " \\n\\t "}': "empty",
        b'{"text": null}': "null_text",
        b'{"text": 7}': "not_text",
        b'{"text": ["a"]}': "not_text",
        b'{"body": "x"}': "missing_column",
        b'["text"]': "bad_json",
        b'{"text": "cut': "bad_json",
        b"[" * 100_000: "bad_json",
    }
    return [*good, *raw, *(HostileLine(data, reason) for data, reason in bad.items())]


def write_images(folder: Path) -> dict[str, HostileImage]:
    """All images with captions in `metadata.jsonl`; returns what must become of each, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {image.name: image for image in (*bad_images(), *good_images())}
    rows = [{"file_name": name, "text": f"a picture called {name}"} for name in images]
    for name, image in images.items():
        (folder / name).write_bytes(image.data)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return images


def write_text(place: Path) -> dict[int, HostileLine]:
    """All lines in one JSONL file; returns what must become of each, by line number."""
    numbered = dict(enumerate(lines(), start=1))
    place.write_bytes(b"\n".join(line.data for line in numbered.values()) + b"\n")
    return numbered
