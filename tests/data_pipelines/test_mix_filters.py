"""Filters, duplicates and contamination: who takes part, counted by what took the others away."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.mix.conditions import Filter
from data_pipelines.mix.config import MixConfig, check
from data_pipelines.mix.near import NearIndex, later_near
from tests.mixes import Doc, filtered, inputs_of, keys_of, mix, pair, prose, sha_of_image
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.sequence.held_out import is_held_out

VALUES = {
    "a": {"score": 4.5, "licence": "cc0", "safe": True, "id": 2**60 + 1},
    "b": {"score": 6, "licence": "CC-BY-4.0", "safe": False, "id": 2**60},
    "c": {"score": " 7.25 ", "licence": None, "width": 7},
    "d": {"score": "high", "language": "de"},
    "e": {"score": float("nan")},
    "f": {},
}
"""Of which each lies in a shard of its own kind: two rows a shard, so that columns differ in type."""


def kept(root: Path, *filters: dict[str, Any], docs: Sequence[Doc] | None = None) -> str:
    """Letters of the documents that pass, from the plan itself."""
    docs = docs or [pair(key, metadata=values) for key, values in VALUES.items()]
    inputs = {"filler": [prose(f"p{i}") for i in range(4)], "pairs": docs}
    options = {"pairs": {"filters": list(filters)}}
    made = mix(root, inputs, sources=options, num_steps=12, rows_per_shard=2)
    return "".join(
        sorted({key.removeprefix("pairs/") for key in keys_of(made) if key.startswith("pairs/")})
    )


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"column": "score", "at_least": 5}, "bc"),
        ({"column": "score", "at_least": 5, "missing": "keep"}, "bcdef"),
        ({"column": "score", "at_most": 6}, "ab"),
        ({"column": "score", "at_least": 4.5, "at_most": 7}, "ab"),
        ({"column": "score", "equal": 6}, "b"),
        ({"column": "licence", "equal": "cc0"}, "a"),
        ({"column": "licence", "one_of": ["cc0", "CC-BY-4.0"]}, "ab"),
        ({"column": "licence", "none_of": ["cc0"]}, "b"),
        ({"column": "licence", "none_of": ["cc0"], "missing": "keep"}, "bcdef"),
        ({"column": "licence", "matches": "(?i)^cc-by"}, "b"),
        ({"column": "safe", "equal": True}, "a"),
        ({"column": "safe", "equal": False, "missing": "keep"}, "bcdef"),
        ({"column": "id", "equal": 2**60}, "b"),
        ({"column": "key", "one_of": ["a", "f"]}, "af"),
        ({"column": "text_tokens", "at_least": 5}, "abcdef"),
        ({"column": "images", "equal": 1}, "abcdef"),
        ({"column": "width", "at_least": 48}, "abcdef"),
        ({"column": "meta.width", "at_least": 7}, "c"),
    ],
    ids=str,
)
def test_a_filter_keeps_what_it_says(
    tmp_path: Path, condition: dict[str, Any], expected: str
) -> None:
    assert kept(tmp_path / "store", condition) == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"column": "short_side", "at_least": 60}, "ac"),
        ({"column": "aspect", "at_most": 1.5}, "ab"),
        ({"column": "height", "at_least": 100}, "c"),
        ({"column": "short_side", "at_most": 60, "missing": "keep"}, "bt"),
    ],
    ids=str,
)
def test_sides_are_those_of_the_image_before_any_crop(
    tmp_path: Path, condition: dict[str, Any], expected: str
) -> None:
    docs = [
        pair("a", size_px=(64, 64)),
        pair("b", size_px=(40, 30)),
        pair("c", size_px=(100, 300)),
        prose("t"),
    ]
    assert kept(tmp_path / "store", condition, docs=docs) == expected


def test_each_filter_counts_what_it_took_and_nothing_is_lost(tmp_path: Path) -> None:
    docs = [pair(key, metadata=values) for key, values in VALUES.items()]
    conditions = [
        {"column": "score", "at_least": 0},
        {"column": "licence", "none_of": ["cc0"], "missing": "keep"},
    ]
    made = mix(
        tmp_path / "store",
        {"pairs": docs, "text": [prose("p", 300)]},
        sources={"pairs": {"filters": conditions}},
    )
    assert filtered(made) == {"filter.licence": 1, "filter.score": 3}
    outcomes = made.manifest.content.outcomes
    assert outcomes is not None
    assert (outcomes.input, outcomes.written) == (7, 3)


def test_a_column_that_no_shard_has_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError,
        match=r"filters: .*'scores'; did you mean 'score'\?; there are key, .*licence",
    ):
        kept(tmp_path / "store", {"column": "scores", "at_least": 1})
    with pytest.raises(ArtifactError, match=r"'\(\?=a\)' is no RE2 expression"):
        kept(tmp_path / "store", {"column": "licence", "matches": "(?=a)"})


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"column": "score"}, "needs a condition"),
        ({"column": "score", "at_least": 2, "at_most": 1}, "nothing would be left"),
        ({"column": "score", "matches": "("}, "is no regular expression"),
        ({"column": "score", "at_lest": 2}, "did you mean 'at_least'"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_a_fault_of_the_job(
    values: dict[str, Any], fault: str
) -> None:
    found, faults = validate(Filter, values, where="filters[0]")
    assert found is None
    assert fault in faults[0]


def test_options_that_do_not_go_together_are_faults_of_the_job() -> None:
    config = MixConfig.model_validate_json(
        """{"sources": {"a": {"tokens": "x", "max_epochs": 2.0}}, "sequence_length": 64,
        "sequences_per_micro_batch": 1, "lanes": 1, "num_steps": 9, "seed": 0, "decontaminate": ["eval"],
        "phases": [{"start_step": 4, "weights": {"b": 1.0}}, {"start_step": 5, "weights": {"a": 0.0}}]}"""
    )
    faults = "\n".join(check(config, {"x": "", "evals": ""}))
    for part in (
        ".decontaminate: no input is named 'eval'; did you mean 'evals'?",
        ".sources.a.max_epochs: a source that repeats has no end",
        ".phases[0]: no source is named 'b'",
        ".phases[1].weights: at least one source must have a weight",
    ):
        assert part in faults


def test_exact_duplicates_take_part_once_whatever_the_source(tmp_path: Path) -> None:
    sources = {
        "a": [pair("1", "sun"), pair("2", "moon"), pair("3", "sun"), prose("4", text="same")],
        "b": [
            pair("5", "moon", text="another caption"),
            prose("6", text="same"),
            Doc(key="7", segments=[9, "sun", 9], text="a page with the sun"),
            Doc(key="8", segments=[9, "sun", 9], text="a page with the sun"),
            pair("9", "star"),
        ],
    }
    made = mix(tmp_path / "store", sources, deduplicate="exact", num_steps=12)
    assert set(keys_of(made)) == {"a/1", "a/2", "a/4", "b/7", "b/9"}
    assert filtered(made) == {"duplicate": 4}
    assert "duplicate" not in filtered(mix(tmp_path / "store", sources))


def test_near_duplicates_are_what_looks_alike_and_pages_are_not(tmp_path: Path) -> None:
    sun = 0x0123456789ABCDEF
    docs = [
        pair("a", phash=sun),
        pair("b", phash=sun ^ 0b111),
        pair("c", phash=sun ^ 0xFF),
        Doc(key="d", segments=["a page", 3, "of pictures"], phash=sun),
        Doc(key="e", segments=["alone"], phash=sun ^ (1 << 63)),
    ]
    made = mix(tmp_path / "store", {"s": docs}, deduplicate="near", near_bits=4, num_steps=20)
    assert filtered(made) == {"near_duplicate": 2}
    assert set(keys_of(made)) == {"s/a", "s/c", "s/d"}


def test_what_looks_like_something_held_out_is_not_trained_on(tmp_path: Path) -> None:
    """A held-out document comes first, wherever it lies."""
    docs = [pair(f"{i:03d}", phash=i // 2) for i in range(60)]
    made = mix(
        tmp_path / "store", {"s": docs}, deduplicate="near", near_bits=0, held_out_fraction=0.3
    )
    trained = {int(key.removeprefix("s/")) // 2 for key in keys_of(made)}
    plain = mix(tmp_path / "store", {"s": docs}, held_out_fraction=0.3, num_steps=40)
    trained_then = {int(key.removeprefix("s/")) for key in keys_of(plain)}
    held_out = {i // 2 for i in range(60) if i not in trained_then}
    assert held_out
    assert not trained & held_out


def test_what_one_source_is_validated_on_no_other_is_trained_on(tmp_path: Path) -> None:
    texts = [prose(f"{i:03d}", text=f"text {i}") for i in range(80)]
    made = mix(
        tmp_path / "store",
        {"little": texts, "much": texts},
        sources={"little": {"held_out_fraction": 0.3}},
        held_out_fraction=0.05,
        num_steps=60,
    )
    trained = {source: set() for source in ("little", "much")}
    for key in keys_of(made):
        source, _, number = key.partition("/")
        trained[source].add(number)
    assert trained["little"] == trained["much"]
    assert len(trained["much"]) < 70


def test_no_document_that_shares_an_image_with_a_held_out_one_is_trained_on(
    tmp_path: Path,
) -> None:
    """Whichever of the two is a pair or a page, and wherever in the page the image is."""
    pairs = [pair(f"{i:03d}", image=f"picture {i}") for i in range(60)]
    # Each page begins with an image of its own and ends with one that a pair has too.
    pages = [
        Doc(key=f"p{i:03d}", segments=[3, f"own {i}", 2, f"picture {i}"]) for i in range(0, 60, 2)
    ]
    made = mix(
        tmp_path / "store", {"pages": pages, "pairs": pairs}, held_out_fraction=0.2, num_steps=60
    )
    trained = {key.partition("/")[2] for key in keys_of(made)}

    def held(image: str) -> bool:
        return is_held_out(sha_of_image(image), 0.2)

    expected = {
        doc.key
        for doc in pairs
        if not held(f"picture {int(doc.key)}")
        and not (int(doc.key) % 2 == 0 and held(f"own {int(doc.key)}"))
    } | {
        doc.key
        for doc in pages
        if not held(f"own {int(doc.key[1:])}") and not held(f"picture {int(doc.key[1:])}")
    }
    assert len(pairs) + len(pages) - len(expected) > 15
    assert trained == expected


def test_what_is_evaluated_on_is_taken_away(tmp_path: Path) -> None:
    root = tmp_path / "store"
    evaluation = inputs_of(
        root, "eval", [pair("x", "sun"), prose("y", text="a question"), pair("z", phash=0b1111)]
    )
    docs = [
        pair("a", "sun"),
        pair("b", text="a question"),
        prose("c", text="a question"),
        Doc(key="d", segments=["cover", 4, "sun"]),
        pair("e", phash=0b11),
        pair("f"),
    ]
    made = mix(root, {"s": docs}, extra=evaluation, decontaminate=["eval", "eval_latents"])
    assert set(keys_of(made)) == {"s/b", "s/f"}
    assert filtered(made) == {"contaminated": 4}


def test_an_image_as_codes_is_known_by_its_digest_on_either_side(tmp_path: Path) -> None:
    # A document of codes is text to the mixture; its content is its image's digest.
    latents = inputs_of(tmp_path / "a", "eval", [pair("x", "sun")])
    coded = mix(
        tmp_path / "a",
        {"s": [prose("coded", text="image sun"), prose("other", text="moon"), pair("p")]},
        extra=latents,
        decontaminate=["eval", "eval_latents"],
    )
    assert set(keys_of(coded)) == {"s/other", "s/p"}
    codes = inputs_of(tmp_path / "b", "eval", [prose("x", text="image sun")])
    latent = mix(
        tmp_path / "b",
        {"s": [pair("sun", "sun"), pair("p"), pair("q")]},
        extra=codes,
        decontaminate=["eval"],
    )
    assert set(keys_of(latent)) == {"s/p", "s/q"}


@pytest.mark.parametrize("bits", range(9))
def test_near_hashes_are_those_that_comparing_all_with_all_finds(bits: int) -> None:
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    for place in range(250, 400):
        flipped = rng.choice(64, rng.integers(0, 10), replace=False).tolist()
        hashes[place] = hashes[rng.integers(0, 300)] ^ np.uint64(sum(1 << bit for bit in flipped))
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= bits
    assert (later_near(hashes, bits) == np.tril(near, -1).any(axis=1)).all()
    found = NearIndex(hashes[:200], bits).near(hashes[200:])
    assert (found == near[200:, :200].any(axis=1)).all()
    assert found.any()
