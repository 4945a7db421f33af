"""The page: a template and a style sheet of this folder, filled in. Everything from outside is escaped."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from transfusion.report.charts import number
from transfusion.report.scores import decimal, percent
from transfusion.stage import duration


def render(sections: dict[str, Any]) -> str:
    """The whole page as HTML."""
    style = (files("transfusion.report") / "style.css").read_text(encoding="utf-8")
    # Our own sheet: within <style> quotes must stay quotes.
    return _template().render(style=Markup(style), **sections)  # noqa: S704


@cache
def _template() -> Any:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": file_size,
        "duration": duration,
        "number": number,
        "percent": percent,
        "decimal": decimal,
        "words": words,
        "json": _json,
    }
    source = (files("transfusion.report") / "page.html").read_text(encoding="utf-8")
    return environment.from_string(source)


def file_size(count: int) -> str:
    """`812 B`, `1.4 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def words(name: str) -> str:
    """A name of the program as words."""
    return name.replace("_", " ")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
