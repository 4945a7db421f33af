"""The lineage as a drawing: a box an artifact, from raw input on the left to the results on the right.

Artifacts stand in columns by depth. A connection that passes a column gets a gap of its own there, so that it
runs between the boxes, never behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from transfusion.report.formats import lasting
from transfusion.report.lineage import Ancestor

_BOX_WIDTH, _BOX_HEIGHT, _GAP_HEIGHT = 128.0, 44.0, 8.0
_SPACE_X, _SPACE_Y = 38.0, 14.0
_MARGIN = 2.0


@dataclass
class _Slot:
    """A place in a column: an artifact, or the gap through which connections from one pass."""

    ancestor: Ancestor | None = None
    before: "list[_Slot]" = field(default_factory=list)
    """Slots of the column to the left that are connected with this one."""
    x: float = 0.0
    y: float = 0.0
    """Of its middle."""

    @property
    def height(self) -> float:
        return _BOX_HEIGHT if self.ancestor else _GAP_HEIGHT


def pipeline_diagram(ancestors: Sequence[Ancestor]) -> str:
    """An SVG of the lineage; boxes link to the artifact's entry on the page."""
    columns = _columns(ancestors)
    width = len(columns) * (_BOX_WIDTH + _SPACE_X) - _SPACE_X + 2 * _MARGIN
    height = max(_height(column) for column in columns) + 2 * _MARGIN
    for at, column in enumerate(columns):
        _place(column, x=_MARGIN + at * (_BOX_WIDTH + _SPACE_X), height=height)
    slots = [slot for column in columns for slot in column]
    return "".join(
        [
            f'<svg class="pipeline" viewBox="0 0 {width:g} {height:g}" role="img" '
            'aria-label="How the artifacts were made from each other">',
            *(_edge(before, slot) for slot in slots for before in slot.before),
            *(_box(slot.ancestor, slot.x, slot.y) for slot in slots if slot.ancestor),
            "</svg>",
        ]
    )


def anchor(ancestor: Ancestor) -> str:
    """The id of an artifact's entry on the page."""
    return f"artifact-{ancestor.manifest.fingerprint[:16]}"


def _columns(ancestors: Sequence[Ancestor]) -> list[list[_Slot]]:
    columns: list[list[_Slot]] = [[] for _ in range(max(one.depth for one in ancestors) + 1)]
    # The slots by which an artifact can be reached from the column right of each.
    ways: dict[str, list[_Slot]] = {}
    for ancestor in sorted(ancestors, key=lambda one: one.depth):
        slot = _Slot(ancestor)
        columns[ancestor.depth].append(slot)
        ways[ancestor.artifact.path] = [slot]
        start = {one.artifact.path: one.depth for one in ancestors}
        for path in ancestor.inputs.values():
            way = ways[path]
            while start[path] + len(way) < ancestor.depth:
                gap = _Slot(before=[way[-1]])
                columns[start[path] + len(way)].append(gap)
                way.append(gap)
            slot.before.append(way[ancestor.depth - 1 - start[path]])
    for column in columns:
        column.sort(key=_middle)
        _place(column, x=0.0, height=0.0)
    return columns


def _middle(slot: _Slot) -> float:
    """Mean height of what a slot is connected with on its left: sorting by it keeps crossings few."""
    return sum(before.y for before in slot.before) / len(slot.before) if slot.before else 0.0


def _height(column: Sequence[_Slot]) -> float:
    return sum(slot.height for slot in column) + _SPACE_Y * (len(column) - 1)


def _place(column: Sequence[_Slot], *, x: float, height: float) -> None:
    top = (height - _height(column)) / 2
    for slot in column:
        slot.x, slot.y = x, top + slot.height / 2
        top += slot.height + _SPACE_Y


def _edge(source: _Slot, target: _Slot) -> str:
    left, right = source.x + _BOX_WIDTH, target.x
    bend = (right - left) / 2
    through = (
        f"M{source.x:g} {source.y:g}H{left:g}" if not source.ancestor else f"M{left:g} {source.y:g}"
    )
    return (
        f'<path class="edge" d="{through}C{left + bend:g} {source.y:g} {right - bend:g} {target.y:g} '
        f'{right:g} {target.y:g}"/>'
    )


def _box(ancestor: Ancestor, x: float, y: float) -> str:
    manifest, kind = ancestor.manifest, ancestor.artifact.kind
    seconds = manifest.timings.get("seconds")
    told = [kind] if kind != manifest.stage else []
    told += [lasting(seconds)] if seconds is not None else []
    name = manifest.stage if len(manifest.stage) <= 16 else f"{manifest.stage[:15]}..."
    top = y - _BOX_HEIGHT / 2
    return (
        f'<a href="#{anchor(ancestor)}"><g class="box {escape(kind)}">'
        f"<title>{escape(f'{manifest.stage}: {manifest.uses}')}</title>"
        f'<rect x="{x:g}" y="{top:g}" width="{_BOX_WIDTH:g}" height="{_BOX_HEIGHT:g}" rx="8"/>'
        f'<text class="name" x="{x + 10:g}" y="{top + 19:g}">{escape(name)}</text>'
        f'<text x="{x + 10:g}" y="{top + 35:g}">{escape(", ".join(told))}</text>'
        "</g></a>"
    )
