"""A contact sheet: pictures with what is said of them, and what was rejected with its reason."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

TILE_PX = 224
"""Side of the square that a picture is fitted into."""

_COLUMNS = 4
_MARGIN_PX = 20
_GAP_PX = 16
_TEXT_LINES = 3
_LINE_PX = 18
_INK, _FAINT, _PAPER, _PANEL, _WRONG = "#1c1c1e", "#8a8a8e", "#ffffff", "#f1f1f4", "#b3261e"


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of the sheet, or one that was rejected."""

    title: str
    text: str
    thumbnail: Picture.Image | None
    """At most `TILE_PX` on a side; None for a rejected one."""
    reason: str = ""


def contact_sheet(tiles: Sequence[Tile], *, heading: str) -> Picture.Image:
    """The tiles in rows of four below a heading."""
    columns = min(_COLUMNS, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    cell_px = TILE_PX + 8 + (1 + _TEXT_LINES) * _LINE_PX
    width = 2 * _MARGIN_PX + columns * TILE_PX + (columns - 1) * _GAP_PX
    height = 2 * _MARGIN_PX + 34 + rows * cell_px + (rows - 1) * _GAP_PX
    sheet = Picture.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (_MARGIN_PX, _MARGIN_PX - 4), _fit(heading, 18, width - 2 * _MARGIN_PX), _INK, _font(18)
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left = _MARGIN_PX + column * (TILE_PX + _GAP_PX)
        top = _MARGIN_PX + 34 + row * (cell_px + _GAP_PX)
        _draw(sheet, draw, tile, left, top)
    return sheet


def _draw(sheet: Picture.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    draw.rectangle((left, top, left + TILE_PX - 1, top + TILE_PX - 1), _PANEL)
    if tile.thumbnail is None:
        middle = (left + TILE_PX / 2, top + TILE_PX / 2)
        draw.text(middle, _fit(tile.reason, 17, TILE_PX - 16), _WRONG, _font(17), anchor="mm")
    else:
        across, down = tile.thumbnail.size
        place = (left + (TILE_PX - across) // 2, top + (TILE_PX - down) // 2)
        sheet.paste(tile.thumbnail, place)
    below = top + TILE_PX + 8
    draw.text((left, below), _fit(tile.title, 12, TILE_PX, keep_end=True), _FAINT, _font(12))
    for line in _lines(tile.text):
        below += _LINE_PX
        draw.text((left, below), line, _INK, _font(14))


def _lines(text: str) -> list[str]:
    """The text in lines that fit below a tile, the last one shortened where there is more."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _TEXT_LINES:
        if len(lines) == _TEXT_LINES - 1:
            return [*lines, _fit(rest, 14, TILE_PX)]
        line = _first_line(rest)
        lines.append(line)
        rest = rest[len(line) :].lstrip()
    return lines


def _first_line(text: str) -> str:
    """As many words as fit, or as many letters of a word that is too long."""
    words = textwrap.wrap(text[:200], 60, break_long_words=True)[0].split(" ")
    for count in range(len(words), 0, -1):
        line = " ".join(words[:count])
        if _font(14).getlength(line) <= TILE_PX:
            return line
    letters = words[0]
    while len(letters) > 1 and _font(14).getlength(letters) > TILE_PX:
        letters = letters[:-1]
    return letters


def _fit(text: str, size: int, width_px: int, *, keep_end: bool = False) -> str:
    """The text, shortened to a width."""
    text = " ".join(text[:400].split()) if not keep_end else " ".join(text[-400:].split())
    if _font(size).getlength(text) <= width_px:
        return text
    while len(text) > 1:
        text = text[1:] if keep_end else text[:-1]
        shown = f"...{text}" if keep_end else f"{text}..."
        if _font(size).getlength(shown) <= width_px:
            return shown
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
