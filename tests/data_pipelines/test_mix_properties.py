"""Any mix: counted again by hand, each document once an epoch, nothing held out, the same for any workers."""

import hashlib
import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.mixes import Doc, mix, pair, plan_lanes, prose, sha_of_image
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture, References, block_name, read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.held_out import is_held_out
from transfusion.train.parallel import lanes_of

DOCS: dict[str, list[Doc]] = {
    "pairs": [pair(f"{i:03d}", tokens=1 + i % 9, metadata={"score": i % 5}) for i in range(70)],
    "prose": [prose(f"{i:03d}", tokens=10 + 7 * i) for i in range(25)],
    "web": [
        Doc(key=f"{i:02d}", segments=[*[3 + i, f"web {i}"] * (1 + i % 8), 5]) for i in range(16)
    ],
}
LENGTHS = {
    f"{name}/{doc.key}": 2 + sum(s if isinstance(s, int) else 6 for s in doc.segments)
    for name, docs in DOCS.items()
    for doc in docs
}


@dataclass(frozen=True)
class Use:
    """One reference of a plan."""

    step: int
    lane: int
    sequence: int
    """In the order of training."""
    source: str
    key: str
    start: int
    length: int
    epoch: int


def uses_of(made: Artifact) -> list[Use]:
    """Every reference, straight from the files."""
    plan, names = read_mixture(made), list(DOCS)
    names = [name for name in names if name in plan.sources]
    first = {name: plan.sources[name].first_shard for name in plan.sources}
    found = []
    for file in made.manifest.content.files:
        if not file.name.startswith("train/"):
            continue
        for row in load_table(made.store, file).to_pylist():
            lane = row["lane"]
            words = References.from_words(np.frombuffer(row["references"], "<u8").reshape(-1, 2))
            at = (row["step"] * plan.lanes + lane) * plan.sequences_per_micro_batch + row["slot"]
            for i in range(len(words.row)):
                shard = int(words.shard[i])
                source = max((n for n in first if first[n] <= shard), key=first.__getitem__)
                document = DOCS[source][(shard - first[source]) * 8 + int(words.row[i])]
                found.append(
                    Use(
                        row["step"], lane, at, source, document.key,
                        int(words.start[i]), int(words.length[i]), int(words.epoch[i]),
                    )
                )  # fmt: skip
    return sorted(found, key=lambda use: use.sequence)


mixes = st.fixed_dictionaries(
    {
        "names": st.sampled_from([("pairs", "prose"), ("pairs", "prose", "web"), ("pairs", "web")]),
        "weights": st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=3, max_size=3),
        "lanes": st.integers(1, 5),
        "per": st.integers(1, 4),
        "seed": st.integers(0, 2**40),
        "steps": st.integers(20, 40),
        "fraction": st.sampled_from([0.0, 0.1, 0.3]),
        "phase": st.one_of(st.none(), st.integers(1, 30)),
        "stop": st.booleans(),
    }
)
WAITING = {
    "names": ("pairs", "web"), "weights": [0.3, 0.3, 1.0], "lanes": 1, "per": 4, "seed": 15836644,
    "steps": 23, "fraction": 0.3, "phase": None, "stop": False,
}  # fmt: skip
"""A plan in which a piece of a page is still waiting when the epoch after its own is over."""

property_settings = settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    # Each example is a whole plan: the first that fails says enough.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def made_from(root: Path, drawn: dict[str, Any], **changed: Any) -> Artifact:
    drawn = {**drawn, **changed}
    sources: dict[str, dict[str, Any]] = {
        name: {"weight": weight}
        for name, weight in zip(drawn["names"], drawn["weights"], strict=False)
    }
    if drawn["stop"]:
        sources[drawn["names"][-1]] |= {"when_exhausted": "stop"}
    phases = []
    if drawn["phase"] is not None:
        filters = {"pairs": [{"column": "score", "at_least": 3}]}
        phases = [{"start_step": drawn["phase"], "weights": {"pairs": 4.0}, "filters": filters}]
    return mix(
        root,
        {name: DOCS[name] for name in drawn["names"]},
        sources=sources,
        phases=phases,
        lanes=drawn["lanes"],
        sequences_per_micro_batch=drawn["per"],
        seed=drawn["seed"],
        num_steps=drawn["steps"],
        held_out_fraction=drawn["fraction"],
    )


@property_settings
@given(drawn=mixes)
def test_what_a_plan_says_of_itself_is_what_counting_it_by_hand_gives(
    tmp_path: Path, drawn: dict[str, Any]
) -> None:
    made = made_from(tmp_path / "store", drawn)
    plan, uses = read_mixture(made), uses_of(made)
    metrics = made.manifest.content.metrics
    filled: dict[int, Counter[str]] = defaultdict(Counter)
    for use in uses:
        filled[use.sequence][use.source] += use.length
    number = plan.steps * plan.lanes * plan.sequences_per_micro_batch
    total = Counter[str]()
    for sequence in range(number):
        total += filled[sequence]
        assert sum(filled[sequence].values()) <= plan.sequence_length
    everything = sum(total.values())
    assert metrics["padding"] == pytest.approx(
        1 - everything / (number * plan.sequence_length), abs=1e-5
    )
    for name in plan.sources:
        assert metrics[f"share.{name}"] == pytest.approx(total[name] / everything, abs=1e-5)
    starts = [phase.start_step for phase in plan.phases] + [plan.steps]
    for phase, last in zip(plan.phases, starts[1:], strict=True):
        inside = [use for use in uses if phase.start_step <= use.step < last]
        for name, counted in phase.statistics.items():
            assert counted["positions"] == sum(use.length for use in inside if use.source == name)
    if not drawn["stop"]:
        per_step = plan.lanes * plan.sequences_per_micro_batch
        edges = [start * per_step for start in starts]
        worst = 0.0
        for phase, first, end in zip(plan.phases, edges, edges[1:], strict=False):
            for begin in range(first, end - 63):
                window = sum((filled[s] for s in range(begin, begin + 64)), Counter[str]())
                worst = max(
                    [
                        worst,
                        *(
                            abs(window[n] / sum(window.values()) - phase.weights.get(n, 0.0))
                            for n in plan.sources
                        ),
                    ]
                )
        assert metrics["largest_ratio_error_in_64"] == pytest.approx(worst, abs=1e-5)


@property_settings
@example(drawn=WAITING)
@given(drawn=mixes)
def test_each_position_of_a_document_comes_once_an_epoch_and_nothing_held_out_ever(
    tmp_path: Path, drawn: dict[str, Any]
) -> None:
    made = made_from(tmp_path / "store", drawn, phase=None)
    held_out = {
        (name, doc.key)
        for name in drawn["names"]
        for doc in DOCS[name]
        if is_held_out(content_of(doc), drawn["fraction"])
    }
    covered: dict[tuple[str, str, int], list[tuple[int, int]]] = defaultdict(list)
    uses = uses_of(made)
    for use in uses:
        assert (use.source, use.key) not in held_out
        covered[use.source, use.key, use.epoch].append((use.start, use.start + use.length))
    for (source, key, _), spans in covered.items():
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans)), "seen twice"
        assert spans[-1][1] <= LENGTHS[f"{source}/{key}"]
    # Epochs that every lane has left behind are whole; pieces that fit badly wait into the next one, or the one
    # after it (`WAITING`): what fills a sequence best is taken first, whoever has waited.
    for source in drawn["names"]:
        there = [doc.key for doc in DOCS[source] if (source, doc.key) not in held_out]
        reached: dict[int, int] = dict.fromkeys(range(drawn["lanes"]), 0)
        for use in uses:
            if use.source == source:
                reached[use.lane] = max(reached[use.lane], use.epoch)
        if len(there) < drawn["lanes"]:
            continue
        for epoch in range(min(reached.values()) - 2):
            for key in there:
                seen = sum(b - a for a, b in covered[source, key, epoch])
                assert seen == LENGTHS[f"{source}/{key}"], (source, key, epoch)


def content_of(doc: Doc) -> bytes:
    images = [segment for segment in doc.segments if isinstance(segment, str)]
    return sha_of_image(images[0]) if images else hashlib.sha256(doc.key.encode()).digest()


@property_settings
@given(drawn=mixes, shorter=st.integers(1, 19))
def test_fewer_steps_and_no_phase_behind_are_a_prefix(
    tmp_path: Path, drawn: dict[str, Any], shorter: int
) -> None:
    long = made_from(tmp_path / "store", drawn)
    until = min(shorter, drawn["phase"] or shorter)
    short = made_from(tmp_path / "store", drawn, steps=until, phase=None)
    rows = until * drawn["per"]
    for whole, part in zip(plan_lanes(long), plan_lanes(short), strict=True):
        assert whole[:rows] == part


@property_settings
@given(
    drawn=mixes,
    world_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    start=st.integers(0, 19),
)
def test_any_workers_from_any_step_on_take_the_same_global_batches(
    tmp_path: Path, drawn: dict[str, Any], world_sizes: list[int], start: int
) -> None:
    made = made_from(tmp_path / "store", drawn)
    plan = read_mixture(made)
    wanted = {
        step: sorted(
            key
            for lane in range(plan.lanes)
            for key in MixtureReader(made, seed=0).document_ids(step, lane)
        )
        for step in range(start, min(start + 3, plan.steps))
    }
    for step, world_size in zip(
        wanted, [min(size, plan.lanes) for size in world_sizes], strict=False
    ):
        taken = []
        for rank in range(world_size):
            reader = MixtureReader(made, seed=0)
            for lane in lanes_of(rank, world_size=world_size, lanes=plan.lanes):
                if lane is not None:
                    taken += reader.document_ids(step, lane)
        assert sorted(taken) == wanted[step]


def test_the_blocks_of_a_lane_hold_its_steps_in_order(tmp_path: Path) -> None:
    """Of more steps than a block: 2,048 sequences of a lane."""
    made = mix(tmp_path / "store", DOCS, num_steps=1100, lanes=1, sequences_per_micro_batch=2)
    plan: Mixture = read_mixture(made)
    assert plan.steps_per_block == 1024
    for block, count in ((0, 1024), (1, 76)):
        table = load_table(made.store, made.entry(block_name(0, block)))
        steps = table["step"].to_pylist()
        assert steps == [1024 * block + i // 2 for i in range(2 * count)]
