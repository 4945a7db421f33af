"""Promises of the layout itself."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transfusion.spec.stages import PACKAGES, known_stages, load_function
from transfusion.stage import Stage


def test_platform_is_no_package(repository: Path) -> None:
    assert not (repository / "platform" / "__init__.py").exists()


def test_a_declaration_imports_neither_torch_nor_ray() -> None:
    """In a fresh process, as a plan does."""
    code = f"""
import importlib, sys
for uses in {known_stages()!r}:
    importlib.import_module(uses).STAGE
    heavy = {{"torch", "ray", "diffusers", "numpy", "pyarrow"}} & set(sys.modules)
    assert not heavy, (uses, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("uses", known_stages())
def test_what_a_declaration_names_exists(uses: str) -> None:
    stage: Stage[Any] = importlib.import_module(uses).STAGE
    for reference in (stage.body, stage.raw, stage.check):
        if reference is not None:
            assert reference.split(".")[0] in PACKAGES, reference
            assert callable(load_function(reference))


def test_no_test_is_imported_by_another(repository: Path) -> None:
    """What tests share lies in modules of its own, and goes on when a test goes."""
    borrowed = re.compile(r"^\s*(?:from|import) tests\.(?:\w+\.)*test_\w+", re.MULTILINE)
    found = {
        str(file.relative_to(repository)): borrowed.findall(file.read_text())
        for file in (repository / "tests").rglob("*.py")
    }
    assert {file: lines for file, lines in found.items() if lines} == {}
