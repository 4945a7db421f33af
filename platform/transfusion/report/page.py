"""The page: a template and a style sheet of this folder, filled in. Everything from outside is escaped."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from transfusion.report.formats import decimal, file_size, lasting, number, percent, plural, words


def render(sections: dict[str, Any], *, template: str = "page.html") -> str:
    """The whole page as HTML."""
    style = (files("transfusion.report") / "style.css").read_text(encoding="utf-8")
    # Our own sheet: within <style> quotes must stay quotes.
    return _environment().get_template(template).render(style=Markup(style), **sections)  # noqa: S704


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": file_size,
        "duration": lasting,
        "number": number,
        "percent": percent,
        "plural": plural,
        "decimal": decimal,
        "words": words,
        "json": _json,
    }
    return environment


def _source(name: str) -> str:
    return (files("transfusion.report") / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
