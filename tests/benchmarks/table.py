"""Results as a table; plain text where rich is not installed."""

from collections.abc import Sequence

from tests.benchmarks.measure import Result

_HEADS = ("what", "value", "reference", "unit", "ratio", "bar", "", "against")


def show(results: Sequence[Result], *, title: str) -> None:
    """Prints them."""
    rows = [_cells(result) for result in results]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(title)
        for row in (_HEADS, *rows):
            print("  ".join(row))
        return
    table = Table(title=title, title_justify="left")
    for head in _HEADS:
        table.add_column(
            head, justify="right" if head in _HEADS[1:6] and head != "unit" else "left"
        )
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)


def _cells(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        _number(result.value),
        _number(result.reference),
        result.unit,
        _number(result.ratio),
        _number(result.bar),
        {None: "", True: "holds", False: "FALLS SHORT"}[result.holds],
        result.against,
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
