"""A list of keys that must not be trained on: how they may be written, and which of them name nothing."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.mix.takedown import Takedown
from tests.mixes import filtered, keys_of, mix, pair, prose
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.errors import ArtifactError
from transfusion.runner.show_mixture import mixture_summary, mixture_text

WEB = ["a/1", "a/2", "b/1", "pairs/3", "x"]


def made(tmp_path: Path, *lines: str) -> Artifact:
    """Pairs 0 to 9, and texts with keys of slashes, of which one looks like a pair."""
    takedown = tmp_path / "takedown.txt"
    takedown.write_text("\n".join(lines) + "\n", "utf-8")
    docs = {"pairs": [pair(str(i)) for i in range(10)], "web": [prose(key) for key in WEB]}
    return mix(tmp_path / "store", docs, takedown=str(takedown), num_steps=30, rows_per_shard=3)


def everything() -> set[str]:
    return {f"pairs/{i}" for i in range(10)} | {f"web/{key}" for key in WEB}


@pytest.mark.parametrize(
    ("lines", "gone"),
    [
        (["4", "a/2"], {"pairs/4", "web/a/2"}),
        (["pairs/4", "web/a/2", "web/x"], {"pairs/4", "web/a/2", "web/x"}),
        # It can be read both ways: rather one too many.
        (["pairs/3"], {"pairs/3", "web/pairs/3"}),
        (["3"], {"pairs/3"}),
        (["4", "pairs/4", "4"], {"pairs/4"}),
        (["a", "/1", "web/", "pairs/web/x", "web/4"], set()),
    ],
)
def test_a_key_is_found_alone_or_behind_its_source(
    tmp_path: Path, lines: list[str], gone: set[str]
) -> None:
    mixture = made(tmp_path, *lines)
    assert set(keys_of(mixture)) == everything() - gone
    assert filtered(mixture).get("takedown", 0) == len(gone)


def test_keys_that_name_nothing_are_counted_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = [f"absent-[{i}]" for i in range(7)]
    monkeypatch.setattr(logging.getLogger("transfusion.job"), "propagate", True)
    mixture = made(tmp_path, "4", "web/x", "pairs/4", *absent)
    told = read_mixture(mixture).takedown
    assert told is not None
    assert (told.listed, told.not_found, told.first_not_found) == (10, 7, absent[:5])
    warning = (
        "takedown: 7 of 10 keys name no document of the sources, such as absent-[0], absent-[1]"
    )
    assert warning in caplog.text
    summary = mixture_summary(mixture)
    assert summary["takedown"]["not_found"] == 7
    line = f"Takedown: 10 keys listed, 7 name no document, such as {', '.join(absent[:5])}"
    assert line in mixture_text(summary, None).splitlines()


def test_a_list_of_which_each_key_names_a_document_says_so(tmp_path: Path) -> None:
    mixture = made(tmp_path, "4", "web/x")
    told = read_mixture(mixture).takedown
    assert told is not None
    assert (told.listed, told.not_found, told.first_not_found) == (2, 0, [])
    text = mixture_text(mixture_summary(mixture), None)
    assert "Takedown: 2 keys listed, each names a document" in text
    nothing = read_mixture(mix(tmp_path / "other", {"pairs": [pair("1"), pair("2")]})).takedown
    assert nothing is None


def test_it_is_what_looking_up_each_key_finds() -> None:
    """Keys of letters around the slash in the order of characters, some of them outside ASCII."""
    rng = np.random.default_rng(0)
    letters = np.array(list("a./0é\U0001f600"))
    words = ["".join(rng.choice(letters, rng.integers(1, 5))) for _ in range(600)]
    listed = {*words[:150], *(f"a/{word}" for word in words[100:200])}
    takedown = Takedown(listed)
    keys = sorted(set(words[50:]))
    found: set[str] = set()
    for source in ("a", "a/0", "b"):
        for first in range(0, len(keys), 20):
            part = keys[first : first + 20]
            table = pa.chunked_array([part[:7], part[7:]], pa.string())
            mask, places = takedown.find(source, table)
            assert mask.tolist() == [k in listed or f"{source}/{k}" in listed for k in part]
            found |= set(takedown.keys.take(pa.array(places)).to_pylist())
    assert found == {
        line
        for line in listed
        if line in keys
        or any(line == f"{source}/{key}" for source in ("a", "a/0", "b") for key in keys)
    }


def test_white_space_around_a_line_is_taken_both_ways_and_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa \r\n b.jpg\nnowhere \n\n   \nc")
    takedown = Takedown.of_file(str(file))
    listed, found = takedown.find("web", pa.chunked_array([[" b.jpg", "a", "c", "d"]]))
    assert listed.tolist() == [True, True, True, False]
    told = takedown.told(found)
    assert told is not None
    assert (told.listed, told.not_found, told.first_not_found) == (4, 1, ["nowhere"])


def test_a_list_in_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"a\nb\ncaf\xe9\n")
    with pytest.raises(ArtifactError, match=r"list.txt: line 3 is no UTF-8"):
        Takedown.of_file(str(file))
