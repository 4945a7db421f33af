"""What a sample held: counts, drops by reason, examples and thumbnails."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from PIL import Image as Picture

from data_pipelines.decode import Reject as Undecodable
from data_pipelines.documents import Document, Image, Rejected, Text
from data_pipelines.inspect.look import spread
from data_pipelines.inspect.sample import NUM_FILES
from data_pipelines.inspect.sheet import Tile
from data_pipelines.inspect.thumbnails import thumbnail

_TILES_A_FILE = 6
_REJECTED_TILES = 8
"""One for each reason."""
_IMAGES_OF_A_DOCUMENT = 3


@dataclass(frozen=True, slots=True)
class Example:
    """A document as lines of text."""

    key: str
    lines: tuple[str, ...]
    tiles: tuple[Tile, ...]


@dataclass(kw_only=True)
class Findings:
    """What a sample held. Rows are documents and rejected rows; images are counted apart."""

    num_rows: int = 0
    num_documents: int = 0
    num_images: int = 0
    num_files: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    rejects: Counter[str] = field(default_factory=Counter)
    """Rows that the source rejected, by reason."""
    undecodable: Counter[str] = field(default_factory=Counter)
    """Images that cannot be decoded, by reason."""
    first_of_reason: dict[str, str] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    """How documents are made up: `text image`, `image text image`, and so on."""
    characters: list[int] = field(default_factory=list)
    sides_px: list[int] = field(default_factory=list)
    """The shorter side of each image."""
    missing_images: int = 0
    examples: list[Example] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)

    def middle(self, values: list[int]) -> str:
        """Least, median and most."""
        return f"{min(values):,} / {median(values):,.0f} / {max(values):,}" if values else "-"


def find(
    rows: Iterable[tuple[int, Document | Rejected]], *, num_examples: int, budget_s: float
) -> Findings:
    """Reads and decodes rows until they end or the time is up."""
    started = time.monotonic()
    found = Findings()
    shown: dict[int, _Spread] = {}
    rejected: dict[str, Tile] = {}
    for number, row in rows:
        found.num_rows += 1
        found.num_files = max(found.num_files, number + 1)
        if isinstance(row, Rejected):
            _reject(found, found.rejects, row.reason, f"{row.key}: {row.detail}")
            rejected.setdefault(row.reason, Tile(row.key, row.detail, None, row.reason))
        else:
            lines, tiles = _document(found, row)
            for tile in tiles:
                if tile.thumbnail is None:
                    rejected.setdefault(tile.reason, tile)
            good = tuple(tile for tile in tiles if tile.thumbnail is not None)
            shown.setdefault(min(number, NUM_FILES - 1), _Spread()).add(
                Example(row.key, tuple(lines), good)
            )
        if time.monotonic() - started > budget_s:
            found.stopped_early = True
            break
    found.seconds = time.monotonic() - started
    found.examples = _in_turn([few.take(num_examples) for few in shown.values()], num_examples)
    for few in shown.values():
        tiles = [tile for example in few.take(_TILES_A_FILE) for tile in example.tiles]
        found.tiles += tiles[:_TILES_A_FILE]
    found.tiles += list(rejected.values())[:_REJECTED_TILES]
    return found


class _Spread:
    """A few of the documents of a file, evenly spread over however many come."""

    def __init__(self) -> None:
        self._kept: list[Example] = []
        self._seen, self._every = 0, 1

    def add(self, example: Example) -> None:
        if self._seen % self._every == 0:
            self._kept.append(example)
            if len(self._kept) > 4 * _TILES_A_FILE:
                del self._kept[1::2]
                self._every *= 2
        self._seen += 1

    def take(self, count: int) -> list[Example]:
        return [self._kept[at] for at in spread(range(len(self._kept)), count)]


def _document(found: Findings, document: Document) -> tuple[list[str], list[Tile]]:
    """Counts a document; its lines and tiles."""
    found.num_documents += 1
    missing = document.metadata.get("missing_images")
    found.missing_images += missing if isinstance(missing, int) else 0
    kinds = ["text" if isinstance(segment, Text) else "image" for segment in document.segments]
    found.shapes[_made_of(kinds)] += 1
    lines: list[str] = []
    tiles: list[Tile] = []
    images = [s for s in document.segments if isinstance(s, Image)]
    for segment in document.segments:
        if isinstance(segment, Text):
            found.characters.append(len(segment.text))
            lines.append(f"text   {_short(segment.text)}")
            continue
        at = len(tiles)
        tile, line = _image(found, document, segment, at, len(images))
        tiles.append(tile)
        lines.append(f"image  {line}")
    if document.metadata:
        shown = ", ".join(f"{name}={value!r}" for name, value in document.metadata.items())
        lines.append(f"meta   {_short(shown)}")
    return _cut(lines), tiles[:_IMAGES_OF_A_DOCUMENT] + [
        tile for tile in tiles[_IMAGES_OF_A_DOCUMENT:] if tile.thumbnail is None
    ]


def _image(
    found: Findings, document: Document, image: Image, index: int, num_images: int
) -> tuple[Tile, str]:
    title = (
        document.key if num_images == 1 else f"{document.key}, image {index + 1} of {num_images}"
    )
    found.num_images += 1
    made = thumbnail(image.data)
    if isinstance(made, Undecodable):
        _reject(found, found.undecodable, made.reason, f"{image.name}: {made.detail}")
        return Tile(title, f"{image.name}: {made.detail}", None, made.reason), made.reason
    height, width = made.facts.original_height, made.facts.original_width
    found.sides_px.append(min(height, width))
    tile = Tile(title, _said_of(document, index), Picture.fromarray(made.pixels))
    return tile, f"{width} x {height}, {len(image.data):,} bytes, {image.name}"


def _said_of(document: Document, index: int) -> str:
    """The text beside an image: before it where the document begins with text, else after it."""
    segments = document.segments
    at = [place for place, segment in enumerate(segments) if isinstance(segment, Image)][index]
    beside = at - 1 if isinstance(segments[0], Text) else at + 1
    said = segments[beside] if beside < len(segments) else None
    return said.text if isinstance(said, Text) else ""


def _made_of(kinds: list[str]) -> str:
    if len(kinds) <= 3:
        return " ".join(kinds) or "nothing"
    images = kinds.count("image")
    sizes = (("1", 1), ("2 to 5", 5), ("6 to 20", 20), ("21 to 100", 100))
    many = next((word for word, most in sizes if images <= most), "more than 100")
    return f"texts with {many} images" if images else "texts"


def _reject(found: Findings, counts: Counter[str], reason: str, detail: str) -> None:
    counts[reason] += 1
    found.first_of_reason.setdefault(reason, detail)


def _in_turn(files: list[list[Example]], count: int) -> list[Example]:
    """Examples of each file before a second one of any."""
    most = max(map(len, files), default=0)
    turns = [examples[turn] for turn in range(most) for examples in files if turn < len(examples)]
    return turns[:count]


def _cut(lines: list[str], most: int = 10) -> list[str]:
    return (
        lines
        if len(lines) <= most
        else [*lines[: most - 1], f"...    {len(lines) - most + 1} more"]
    )


def _short(text: str, most: int = 160) -> str:
    plain = " ".join(text[: 4 * most].split())
    plain = plain.encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= most and len(text) <= 4 * most else f"{plain[:most]}..."
