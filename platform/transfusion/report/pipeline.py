"""The lineage as a drawing: a box an artifact, from raw input on the left to the results on the right."""

from collections.abc import Sequence
from html import escape

from transfusion.report.lineage import Ancestor
from transfusion.stage import duration

_BOX_WIDTH, _BOX_HEIGHT = 128.0, 44.0
_GAP_X, _GAP_Y = 38.0, 16.0


def pipeline_diagram(ancestors: Sequence[Ancestor]) -> str:
    """An SVG of the lineage; boxes link to the artifact's entry on the page."""
    columns = _columns(ancestors)
    tallest = max(len(column) for column in columns)
    width = len(columns) * (_BOX_WIDTH + _GAP_X) - _GAP_X + 4
    height = tallest * (_BOX_HEIGHT + _GAP_Y) - _GAP_Y + 4
    places = {
        ancestor.artifact.path: (
            2 + at * (_BOX_WIDTH + _GAP_X),
            2 + (row + (tallest - len(column)) / 2) * (_BOX_HEIGHT + _GAP_Y),
        )
        for at, column in enumerate(columns)
        for row, ancestor in enumerate(column)
    }
    edges = [
        _edge(places[path], places[ancestor.artifact.path])
        for ancestor in ancestors
        for path in ancestor.inputs.values()
    ]
    return "".join(
        [
            f'<svg class="pipeline" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
            'role="img" aria-label="How the artifacts were made from each other">',
            *edges,
            *(_box(ancestor, *places[ancestor.artifact.path]) for ancestor in ancestors),
            "</svg>",
        ]
    )


def anchor(ancestor: Ancestor) -> str:
    """The id of an artifact's entry on the page."""
    return f"artifact-{ancestor.manifest.fingerprint[:16]}"


def _columns(ancestors: Sequence[Ancestor]) -> list[list[Ancestor]]:
    """Artifacts by depth; within a column in the order of what they were made from, so that few edges cross."""
    columns: list[list[Ancestor]] = []
    heights: dict[str, float] = {}
    for depth in range(max(ancestor.depth for ancestor in ancestors) + 1):
        column = [ancestor for ancestor in ancestors if ancestor.depth == depth]
        column.sort(key=lambda one: _middle(one, heights))
        for row, ancestor in enumerate(column):
            heights[ancestor.artifact.path] = row - (len(column) - 1) / 2
        columns.append(column)
    return columns


def _middle(ancestor: Ancestor, heights: dict[str, float]) -> float:
    above = [heights[path] for path in ancestor.inputs.values()]
    return sum(above) / len(above) if above else 0.0


def _edge(source: tuple[float, float], target: tuple[float, float]) -> str:
    x0, y0 = source[0] + _BOX_WIDTH, source[1] + _BOX_HEIGHT / 2
    x1, y1 = target[0], target[1] + _BOX_HEIGHT / 2
    bend = max((x1 - x0) / 2, 16)
    return f'<path class="edge" d="M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"/>'


def _box(ancestor: Ancestor, x: float, y: float) -> str:
    manifest = ancestor.manifest
    seconds = manifest.timings.get("seconds")
    took = "" if seconds is None else f", {duration(seconds)}"
    name = manifest.stage if len(manifest.stage) <= 17 else f"{manifest.stage[:16]}..."
    return (
        f'<a href="#{anchor(ancestor)}"><g class="box {escape(ancestor.artifact.kind)}">'
        f"<title>{escape(f'{manifest.stage}: {manifest.uses}')}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{_BOX_WIDTH:g}" height="{_BOX_HEIGHT:g}" rx="8"/>'
        f'<text class="name" x="{x + 10:g}" y="{y + 19:g}">{escape(name)}</text>'
        f'<text x="{x + 10:g}" y="{y + 35:g}">{escape(ancestor.artifact.kind + took)}</text>'
        "</g></a>"
    )
