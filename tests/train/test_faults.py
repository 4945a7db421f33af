"""Steps whose numbers are wrong: passed over or the end, by policy, and always written down."""

import json
import logging

import pytest
import torch
import torch.distributed as dist

from tests.train.outcomes import (
    assert_same_weights,
    contents,
    read_record,
    result_file,
    rows,
    steps_saved,
)
from tests.train.worlds import MadeUpSource, config, in_world, train
from transfusion.errors import ArtifactError
from transfusion.train.faults import NotFiniteError, in_short, trailing

pytestmark = pytest.mark.usefixtures("world", "unchecked_shapes")

SKIPPING = config(on_nan="skip")


def spoilt():
    return MadeUpSource(spoilt=[(2, 1)])


def test_a_skipped_step_leaves_no_trace_but_its_row_and_its_documents(tmp_path, caplog):
    every = config(on_nan="skip", checkpoint_every_steps=1, keep_checkpoints=9)
    with caplog.at_level(logging.WARNING, "transfusion"):
        outcome = train(tmp_path, settings=every, source=spoilt())
    assert "step 2 makes no update: loss nan" in caplog.text
    found = rows(tmp_path, outcome)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row.get("skipped") for row in found] == [None, None, 1.0, None, None, None]
    assert "loss" not in found[2]
    assert contents(tmp_path, 2) == contents(tmp_path, 3) != contents(tmp_path, 4)
    assert outcome["metrics"]["train.skipped_steps"] == 1
    about = json.loads(result_file(tmp_path, outcome, "faults/step-000002.json"))
    assert about["values"]["loss"] == "nan"
    assert "lane 1" in about["suspects"]
    assert about["documents"]["lane 0"] == ["document-2-0-0", "document-2-0-1"]


@pytest.mark.parametrize("crash", [2, 3, 5])
def test_skipping_is_resumed_to_the_bit(tmp_path, crash):
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    expected = train(calm, settings=SKIPPING, source=spoilt())
    with pytest.raises(InterruptedError):
        train(rough, settings=SKIPPING, source=spoilt(), stop_after=crash)
    made = train(rough, settings=SKIPPING, source=spoilt())
    assert rows(calm, expected) == rows(rough, made)
    assert_same_weights((calm, expected), (rough, made))


def test_too_many_skipped_steps_in_a_row_end_the_run_across_a_resume_too(tmp_path):
    settings = config(on_nan="skip", max_skipped_steps=2, checkpoint_every_steps=1)
    source = MadeUpSource(spoilt=[(2, 0), (3, 0), (4, 0)])
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=settings, source=source, stop_after=4)
    assert read_record(tmp_path, 3)["skipped"] == [2]
    with pytest.raises(
        NotFiniteError, match=r"step 4: .*3 steps in a row.*max_skipped_steps \(2\)"
    ):
        train(tmp_path, settings=settings, source=source)


def test_a_run_that_halts_leaves_the_documents_too(tmp_path):
    with pytest.raises(NotFiniteError, match="step 2: loss nan"):
        train(tmp_path, source=spoilt())
    about = json.loads((tmp_path / "run/faults/step-000002.json").read_text())
    assert about["documents"]["lane 2"] == ["document-2-2-0", "document-2-2-1"]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path, monkeypatch):
    from transfusion.train.state import TrainingState

    update = TrainingState.update

    def spoil(state, step):
        update(state, step)
        if step == 3:
            weight = next(state.model.parameters())
            with torch.no_grad():
                weight.to_local().view(-1)[0] = float("inf")

    monkeypatch.setattr(TrainingState, "update", spoil)
    with pytest.raises(NotFiniteError, match="after step 4 1 weights hold NaN or infinity"):
        train(tmp_path)
    assert steps_saved(tmp_path) == [2]


@pytest.mark.parametrize(
    ("steps", "count"), [([], 0), ([4], 1), ([1, 3, 4], 2), ([2, 3, 4], 3), ([2, 5], 1)]
)
def test_steps_in_a_row_are_counted_from_the_end(steps, count):
    assert trailing(steps) == count


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_a_save_before_the_first_update_counts_no_update(tmp_path, moments):
    """Torch fills in an optimizer's moments by a step of nothing, when they are asked for too early."""
    rare = config(on_nan="skip", adam_moments=moments, checkpoint_every_steps=6)
    often = config(on_nan="skip", adam_moments=moments, checkpoint_every_steps=1)
    results = []
    for folder, settings in ((tmp_path / "rare", rare), (tmp_path / "often", often)):
        folder.mkdir()
        outcome = train(folder, settings=settings, source=MadeUpSource(spoilt=[(0, 1)]))
        results.append((rows(folder, outcome), result_file(folder, outcome, "model.safetensors")))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("documents", "suspects", "told"),
    [
        ({1: ["a", "b"], 0: ["c"]}, [], "lane 0: c; lane 1: a, b"),
        ({1: ["a", "b"], 0: ["c"]}, [1], "lane 1: a, b"),
        ({0: [str(n) for n in range(10)]}, [], "lane 0: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"),
        ({lane: ["x"] for lane in range(5)}, [],
         "lane 0: x; lane 1: x; lane 2: x; lane 3: x and 1 more lanes"),
        ({}, [3], ""),
    ],
)  # fmt: skip
def test_a_message_names_a_few_documents_of_the_lanes_at_fault(documents, suspects, told):
    assert in_short(documents, suspects=suspects) == told


class OwnLanesOnly(MadeUpSource):
    """Names documents of this rank's lanes and of no other's: a rank has not fetched those."""

    def document_ids(self, step, lane):
        assert lane % dist.get_world_size() == dist.get_rank(), f"lane {lane} is another rank's"
        return super().document_ids(step, lane)


def halt_in_two(folder):
    with pytest.raises(NotFiniteError, match=r"step 2: .*its data: lane 1: document-2-1-0"):
        train(folder, source=OwnLanesOnly(spoilt=[(2, 1)]))
    (folder / f"rank-{dist.get_rank()}.txt").touch()


def test_each_rank_names_its_own_documents_and_every_rank_the_same(tmp_path):
    in_world(2, halt_in_two, tmp_path)
    assert len(list(tmp_path.glob("rank-*.txt"))) == 2
    about = json.loads((tmp_path / "run/faults/step-000002.json").read_text())
    assert sorted(about["documents"]) == ["lane 0", "lane 1", "lane 2"]


class Unreadable(MadeUpSource):
    def document_ids(self, step, lane):
        raise ArtifactError(f"lane {lane} is on a store that is away")


def test_a_step_at_fault_is_told_where_its_documents_cannot_be_read(tmp_path, caplog):
    with pytest.raises(NotFiniteError, match="step 2: loss nan"):
        train(tmp_path, source=Unreadable(spoilt=[(2, 1)]))
    assert "documents of step 2 cannot be named: lane 0 is on a store" in caplog.text
