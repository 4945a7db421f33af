"""Promises of the layout itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from transfusion.spec.stages import PACKAGES, known_stages


def test_platform_is_no_package(repository: Path) -> None:
    assert not (repository / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("uses", known_stages())
def test_a_declaration_imports_neither_torch_nor_ray_and_its_body_exists(uses: str) -> None:
    """In a fresh process, as a plan does; then every string of the declaration is resolved."""
    code = f"""
import importlib, sys
stage = importlib.import_module({uses!r}).STAGE
heavy = {{"torch", "ray", "diffusers", "numpy", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
from transfusion.spec.stages import load_function
for reference in (stage.body, stage.raw, stage.check):
    if reference is not None:
        assert reference.split(".")[0] in {PACKAGES!r}, reference
        load_function(reference)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
