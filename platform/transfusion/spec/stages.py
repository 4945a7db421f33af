"""Finding stages by the name of the module that declares them."""

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfusion.config import suggestion
from transfusion.errors import SpecError
from transfusion.stage import Stage

PACKAGES = ("transfusion", "data_pipelines")
"""The only packages that a job may name: a job file is data, and must not choose what code is imported."""

_DECLARES = re.compile(r"^STAGE\b.*=", re.MULTILINE)


def find_stage(uses: str) -> Stage:
    """The `STAGE` of a module.

    Raises:
        SpecError: It is not one of ours, or declares no stage; names the nearest that does.
    """
    if uses not in known_stages():
        raise SpecError(f"no stage {uses!r}{suggestion(uses, known_stages())}")
    stage = importlib.import_module(uses).STAGE
    assert isinstance(stage, Stage), uses
    return stage


@functools.cache
def known_stages() -> tuple[str, ...]:
    """Every module of ours that declares a stage, found by reading, not importing."""
    names = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(root).rglob("*.py")):
                if _DECLARES.search(path.read_text(encoding="utf-8")):
                    parts = path.relative_to(root).with_suffix("").parts
                    names.append(
                        ".".join((package, *(part for part in parts if part != "__init__")))
                    )
    return tuple(names)


def load_function(reference: str) -> Callable[..., Any]:
    """The function that `module:name` points at."""
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(module), name)
    assert callable(function), reference
    return function
