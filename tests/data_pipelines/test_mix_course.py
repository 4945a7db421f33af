"""The course of a run: phases, exhaustion, long documents; what was planned stays when more is planned behind."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.mix.pieces import split
from tests.mixes import Doc, keys_of, mix, pair, plan_lanes, prose
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.errors import ArtifactError
from transfusion.ingest.pieces import cut
from transfusion.ingest.reader import MixtureReader

PAIRS = [pair(f"{i:03d}", tokens=4 + i % 7, metadata={"score": i % 10}) for i in range(60)]
TEXTS = [prose(f"{i:03d}", tokens=30 + 5 * i) for i in range(20)]
BOTH = {"pairs": PAIRS, "prose": TEXTS}
LAST = {
    "start_step": 30,
    "weights": {"pairs": 3.0},
    "filters": {"pairs": [{"column": "score", "at_least": 8}]},
}


def begins_with(long: Artifact, short: Artifact, steps: int) -> bool:
    """Whether the first steps of a plan are those of another."""
    rows = steps * read_mixture(short).sequences_per_micro_batch
    return all(
        a[:rows] == b[:rows] for a, b in zip(plan_lanes(long), plan_lanes(short), strict=True)
    )


def by_step(mixture: Artifact) -> list[list[str]]:
    reader = MixtureReader(mixture, seed=0)
    return [
        [key for lane in range(reader.lanes) for key in reader.document_ids(step, lane)]
        for step in range(reader.steps)
    ]


def test_a_phase_has_its_own_weights_and_filters_and_leaves_what_came_before(
    tmp_path: Path,
) -> None:
    plain = mix(tmp_path / "store", BOTH, num_steps=40)
    phased = mix(tmp_path / "store", BOTH, num_steps=40, phases=[LAST])
    assert begins_with(phased, plain, 30)
    assert not begins_with(phased, plain, 31)
    steps = by_step(phased)
    best = {f"pairs/{doc.key}" for doc in PAIRS if doc.metadata["score"] >= 8}
    seen_last = {key for keys in steps[30:] for key in keys if key.startswith("pairs/")}
    assert seen_last == best
    first, last = read_mixture(phased).phases
    assert (first.start_step, last.start_step) == (0, 30)
    assert first.weights == pytest.approx({"pairs": 0.5, "prose": 0.5})
    assert last.weights == pytest.approx({"pairs": 0.75, "prose": 0.25})
    assert first.statistics["pairs"]["share"] == pytest.approx(0.5, abs=0.01)
    assert last.statistics["pairs"]["share"] == pytest.approx(0.75, abs=0.03)
    positions = sum(4 + i % 7 + 8 for i in range(60) if i % 10 >= 8)
    assert last.statistics["pairs"]["epochs"] == pytest.approx(
        last.statistics["pairs"]["positions"] / positions, abs=1e-4
    )


def test_another_phase_and_more_steps_behind_leave_the_earlier_steps(tmp_path: Path) -> None:
    short = mix(tmp_path / "store", BOTH, num_steps=40, phases=[LAST])
    without = {"start_step": 45, "weights": {"prose": 0.0}}
    long = mix(tmp_path / "store", BOTH, num_steps=60, phases=[LAST, without])
    assert begins_with(long, short, 40)
    assert not [key for keys in by_step(long)[46:] for key in keys if key.startswith("prose/")]
    # A document that was cut goes on where its source is taken up again, or never.
    assert read_mixture(long).phases[2].statistics["pairs"]["share"] == 1.0


def test_a_phase_that_is_not_reached_is_no_part_of_the_plan(tmp_path: Path) -> None:
    plain = mix(tmp_path / "store", BOTH, num_steps=20)
    phased = mix(tmp_path / "store", BOTH, num_steps=20, phases=[LAST])
    assert phased.manifest.digest == plain.manifest.digest
    nothing = LAST | {"filters": {"pairs": [{"column": "score", "at_least": 11}]}, "start_step": 5}
    with pytest.raises(ArtifactError, match=r"phases\[0\].filters.pairs: none of the source's 60"):
        mix(tmp_path / "store", BOTH, phases=[nothing])


def limited(root: Path, **options: Any) -> Artifact:
    steps = options.pop("num_steps", 60)
    lanes = options.pop("lanes", 2)
    return mix(root, BOTH, sources={"pairs": options}, num_steps=steps, lanes=lanes)


@pytest.mark.parametrize(("epochs", "lanes"), [(None, 1), (1.0, 2), (2.0, 4), (0.5, 2), (2.5, 3)])
def test_a_source_that_stops_gave_each_document_as_often_as_it_was_to(
    tmp_path: Path, epochs: float | None, lanes: int
) -> None:
    options = {} if epochs is None else {"max_epochs": epochs}
    made = limited(tmp_path / "store", when_exhausted="stop", lanes=lanes, **options)
    counts = Counter(key for key in keys_of(made) if key.startswith("pairs/"))
    epochs = epochs or 1.0
    whole, rest = divmod(epochs, 1)
    assert sum(counts.values()) == pytest.approx(60 * epochs, abs=lanes)
    assert set(counts.values()) <= {int(whole), int(whole + (rest > 0))}
    if not rest:
        assert len(counts) == 60
    metrics = made.manifest.content.metrics
    ended = int(metrics["exhausted_at_step.pairs"])
    assert 1 < ended < 60
    assert not any(key.startswith("pairs/") for keys in by_step(made)[ended + 1 :] for key in keys)
    # What is left of the run is prose, packed as tightly as ever.
    assert metrics["padding"] < 0.02
    assert read_mixture(made).statistics["pairs"]["epochs"] == pytest.approx(epochs, abs=0.1)


def test_a_budget_of_tokens_is_kept_to_within_a_micro_batch(tmp_path: Path) -> None:
    made = limited(tmp_path / "store", when_exhausted="stop", max_tokens=3000)
    drawn = read_mixture(made).statistics["pairs"]["positions"]
    assert 3000 <= drawn <= 3000 + 2 * 64
    assert made.manifest.content.metrics["exhausted_at_step.pairs"] > 0


def test_exhaustion_ends_or_fails_where_it_says(tmp_path: Path) -> None:
    stopped = limited(tmp_path / "store", when_exhausted="stop")
    ended = limited(tmp_path / "store", when_exhausted="end")
    step = int(ended.manifest.content.metrics["exhausted_at_step.pairs"])
    assert read_mixture(ended).steps == step + 1
    later = {"start_step": step + 5, "weights": {"pairs": 3.0}}
    never_reached = mix(
        tmp_path / "store",
        BOTH,
        sources={"pairs": {"when_exhausted": "end"}},
        num_steps=60,
        phases=[later],
    )
    assert len(read_mixture(never_reached).phases) == 1
    assert begins_with(stopped, ended, step + 1)
    with pytest.raises(ArtifactError, match=rf"sources.pairs: exhausted at step {step} of 60"):
        limited(tmp_path / "store", when_exhausted="fail")
    enough = limited(tmp_path / "store", when_exhausted="fail", num_steps=step - 2)
    assert begins_with(stopped, enough, step - 2)
    both = {name: {"when_exhausted": "stop"} for name in BOTH}
    with pytest.raises(ArtifactError, match=r"all sources are exhausted at step \d+ of 60"):
        mix(tmp_path / "store", BOTH, sources=both, num_steps=60)


def page(key: str, layout: str, tokens: int = 9) -> Doc:
    segments = [tokens if kind == "t" else f"{key} {n}" for n, kind in enumerate(layout)]
    return Doc(key=key, segments=segments)


def test_long_pages_are_cut_between_segments_and_every_segment_is_seen(tmp_path: Path) -> None:
    pages = [page(f"{i:02d}", "titittiitii" * (1 + i % 4), 3 + i) for i in range(12)]
    pages.append(page("long text", "itti", 150))
    made = mix(
        tmp_path / "store", {"web": pages}, sources={"web": {"when_exhausted": "end"}}, num_steps=90
    )
    assert made.manifest.content.outcomes.model_dump() == {
        "input": 13, "written": 13, "filtered": {}, "rejected": {},
    }  # fmt: skip
    reader = MixtureReader(made, seed=0)
    seen_images = seen_text = 0
    for step in range(reader.steps):
        for lane in range(reader.lanes):
            batch = reader.micro_batch(step, lane)
            seen_images += int(batch.image_weight.sum())
            special = reader.special
            others = {special.bos, special.eos, special.boi, special.eoi, special.pad}
            seen_text += sum(int(token) not in others for token in batch.token_ids.flatten())
    images = sum(isinstance(s, str) for doc in pages for s in doc.segments)
    tokens = sum(s for doc in pages for s in doc.segments if isinstance(s, int))
    statistics = read_mixture(made).statistics["web"]
    assert statistics["images"] == seen_images
    assert statistics["caption_tokens"] + statistics["prose_tokens"] == seen_text
    # All of an epoch, but for what waits when the last lane comes to its end.
    assert seen_images == pytest.approx(images, rel=0.05)
    assert seen_text == pytest.approx(tokens, rel=0.1)


@settings(max_examples=200, deadline=None)
@given(
    layout=st.text("ti", min_size=1, max_size=30),
    seed=st.integers(0, 10**6),
    patches=st.integers(1, 20),
    spare=st.integers(0, 40),
    clean_copies=st.booleans(),
    conditions=st.booleans(),
)
def test_pieces_are_the_document_and_cut_no_image(
    layout: str, seed: int, patches: int, spare: int, clean_copies: bool, conditions: bool
) -> None:
    image_length = patches + 2
    longest = image_length + 2 + spare
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 99, n, dtype=np.int32) for n in rng.integers(0, 60, layout.count("t"))]
    copies = {
        "twin_length": patches if clean_copies else 0,
        "num_conditions": max(layout.count("i") - 1, 0) if conditions else 0,
    }
    pieces = split(
        layout, [len(ids) for ids in texts], image_length=image_length, longest=longest, **copies
    )
    total = 2 + sum(map(len, texts)) + image_length * layout.count("i")
    assert pieces[0].start == 0
    # What lies behind a piece is no part of the document.
    ends = [piece.start + piece.length - patches * piece.copied for piece in pieces]
    assert ends == [*(piece.start for piece in pieces[1:]), total]
    assert [piece.closes for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    seen_text, seen_images = [], []
    for piece in pieces:
        assert piece.length <= longest or not piece.images
        found = cut(
            layout,
            texts,
            start=piece.start,
            length=piece.length,
            image_length=image_length,
            **copies,
        )
        behind = [
            part
            for at, part in enumerate(found.parts)
            if isinstance(part, int)
            and part >= copies["num_conditions"]
            and any(isinstance(p, int) or len(p) for p in found.parts[at + 1 :])
        ]
        assert found.copied == (behind if clean_copies else [])
        assert piece.copied == len(found.copied)
        assert (found.opens, found.closes) == (piece.start == 0, piece.closes)
        ids = [part for part in found.parts if not isinstance(part, int)]
        images = [part for part in found.parts if isinstance(part, int)]
        assert (sum(map(len, ids)), len(images)) == (piece.text_tokens, piece.images)
        seen_text += ids
        seen_images += images
    assert seen_images == list(range(layout.count("i")))
    if texts:
        assert (
            np.concatenate([*seen_text, np.zeros(0, np.int32)]).tolist()
            == np.concatenate(texts).tolist()
        )


def test_an_image_is_never_cut_by_a_plan_that_is_wrong() -> None:
    with pytest.raises(ValueError, match="cut image 0, which is at 1 to 7"):
        cut("i", [], start=0, length=4, image_length=6)


def test_a_sequence_that_holds_no_image_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="sequence_length is 16, and an image alone takes 20"):
        mix(tmp_path / "store", BOTH, sequence_length=16, layout={"patch_size": 1})
