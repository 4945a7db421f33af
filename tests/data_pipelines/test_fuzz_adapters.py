"""A few of the files that `tests.fuzz_adapters` reads for minutes: rows, or an error that names the file."""

from pathlib import Path

import pytest

from tests.fuzz_adapters import draw, prepare, run
from tests.fuzz_cases import CASES

NUM_FILES = 80


@pytest.mark.parametrize("adapter", CASES)
def test_whatever_a_file_holds_it_comes_to_rows_or_an_error_that_names_it(
    adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = set()
    for number in range(NUM_FILES):
        prepare(tmp_path / str(number))
        told, _ = run(draw(adapter, number), tmp_path / str(number))
        seen.add(told)
    assert {"with rejects", "documents"} <= seen
