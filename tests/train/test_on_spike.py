"""Runs with planted spikes end with the weights of runs that never saw them, killed in between or not."""

import json
import logging

import pytest
import torch
from safetensors.torch import load

from tests.train.outcomes import (
    assert_same,
    assert_same_weights,
    contents,
    read_record,
    result_file,
    rows,
    steps_saved,
)
from tests.train.worlds import MadeUpSource, config, in_world, train
from transfusion.resources import TrainResources
from transfusion.train.checkpoints.saver import Saver
from transfusion.train.faults import SpikeError
from transfusion.train.parallel import local
from transfusion.train.spikes import SpikeConfig
from transfusion.train.state import TrainingState
from transfusion.train.stop import StoppedError

pytestmark = pytest.mark.usefixtures("world", "unchecked_shapes")

STEPS = 14
LANES = 3


def spiking(policy, *, every=2, **changed):
    values = {
        "threshold": 30.0, "window_steps": 8, "min_history_steps": 4, "rewind_after_steps": 2,
        "rewind_margin_steps": 1,
    }  # fmt: skip
    spikes = {name: changed.pop(name) for name in [*values, "max_rewinds"] if name in changed}
    return config(
        steps=STEPS,
        on_spike=policy,
        checkpoint_every_steps=every,
        spikes=SpikeConfig(**(values | spikes)),
        **changed,
    )


def by_hand(folder, steps, every=2):
    """The run in which these steps make no update, because their data is no number."""
    folder.mkdir()
    settings = config(
        steps=STEPS, on_nan="skip", max_skipped_steps=STEPS, checkpoint_every_steps=every
    )
    source = MadeUpSource(spoilt=[(step, lane) for step in steps for lane in range(LANES)])
    return folder, train(folder, settings=settings, source=source)


def assert_same_state(one, other):
    """Weights, their average and the moments of the last step."""
    assert_same_weights(one, other)
    assert contents(one[0], STEPS) == contents(other[0], STEPS), "moments too"


def assert_same_run(one, other):
    assert_same(one, other)
    assert_same_state(one, other)


def marked(folder, outcome, mark):
    return {row["step"] - 1: row[mark] for row in rows(folder, outcome) if mark in row}


def test_telling_changes_nothing_but_what_is_told(tmp_path, caplog):
    source = MadeUpSource(loud=[6])
    for policy in ("off", "tell"):
        (tmp_path / policy).mkdir()
    off = (tmp_path / "off", train(tmp_path / "off", settings=spiking("off"), source=source))
    with caplog.at_level(logging.WARNING, "transfusion"):
        outcome = train(tmp_path / "tell", settings=spiking("tell"), source=source)
    told = (tmp_path / "tell", outcome)
    assert_same_state(off, told)
    assert marked(*told, "spike")[6] == 1.0
    assert marked(*off, "spike") == {}
    assert "step 6 stands out: loss" in caplog.text
    about = json.loads(result_file(*told, "faults/step-000006.json"))
    assert about["documents"]["lane 2"] == ["document-6-2-0", "document-6-2-1"]
    assert "deviations above" in about["why"]
    assert about["values"]["loss"] == rows(*told)[6]["loss"]
    assert outcome["metrics"]["train.spikes"] == len(marked(*told, "spike"))


def test_a_skipped_spike_leaves_the_weights_of_a_run_without_that_step(tmp_path):
    outcome = train(tmp_path, settings=spiking("skip"), source=MadeUpSource(loud=[5, 9]))
    assert marked(tmp_path, outcome, "skipped") == {5: 1.0, 9: 1.0}
    assert "loss" in rows(tmp_path, outcome)[5]
    assert_same_state(by_hand(tmp_path / "hand", [5, 9]), (tmp_path, outcome))
    assert outcome["metrics"]["train.skipped_steps"] == outcome["metrics"]["train.spikes"] == 2
    assert read_record(tmp_path, STEPS)["skipped"] == [5, 9]


def test_too_many_skipped_spikes_in_a_row_end_the_run(tmp_path):
    settings = spiking("skip", max_skipped_steps=1)
    with pytest.raises(
        SpikeError, match=r"step 7: loss.*2 steps in a row.*\(1\).*lane 0: document-7"
    ):
        train(tmp_path, settings=settings, source=MadeUpSource(loud=[6, 7]))


# The update of step 6 is made before the spike is sure at step 7. Steps from the checkpoint on are passed over.
@pytest.mark.parametrize(
    ("every", "first", "background"), [(1, 5, True), (2, 4, False), (3, 3, True), (5, 5, False)]
)
def test_a_run_that_goes_back_ends_as_one_without_those_steps(
    tmp_path, every, first, background, caplog
):
    resources = TrainResources(checkpoint_async=background)
    settings = spiking("rewind", every=every, keep_checkpoints=1)
    with caplog.at_level(logging.WARNING, "transfusion"):
        outcome = train(
            tmp_path, settings=settings, source=MadeUpSource(loud=[6, 7]), resources=resources
        )
    passed_over = range(first, 8)
    assert f"steps {first} to 7 are passed over" in caplog.text
    assert_same_state(by_hand(tmp_path / "hand", passed_over, every), (tmp_path, outcome))
    assert marked(tmp_path, outcome, "rewound_steps") == {7: len(passed_over)}
    assert marked(tmp_path, outcome, "spike") == {6: 1.0, 7: 1.0}
    assert [row["step"] for row in rows(tmp_path, outcome)] == list(range(1, STEPS + 1))
    gone = {"first": first, "begin": 6, "last": 7}
    assert read_record(tmp_path, STEPS)["spikes"]["rewinds"] == [gone]
    assert (
        json.loads(result_file(tmp_path, outcome, "faults/rewind-000007.json"))["passed_over"]
        == gone
    )
    assert {"faults/step-000006.json", "faults/step-000007.json"} < {
        file["name"] for file in outcome["files"]
    }
    assert outcome["metrics"]["train.rewound_steps"] == len(passed_over)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_mean_of_checkpoints_counts_those_that_were_passed_over(tmp_path, monkeypatch, policy):
    """With the weights that the run stood at: the mean is taken by hand of what was saved."""
    saved, as_dict = [], TrainingState.as_dict

    def keep(state):
        saved.append({name: local(w).clone() for name, w in state.model.named_parameters()})
        return as_dict(state)

    monkeypatch.setattr(TrainingState, "as_dict", keep)
    settings = spiking(policy, average_checkpoints=5)
    loud = [9] if policy == "skip" else [8, 9]
    outcome = train(tmp_path, settings=settings, source=MadeUpSource(loud=loud))
    of_6, of_8, of_10, of_12, of_14 = saved[-5:]
    if policy == "rewind":
        assert marked(tmp_path, outcome, "rewound_steps") == {9: 4.0}, "back to step 6"
        of_8 = of_6
    for name, average in load(result_file(tmp_path, outcome, "ema.safetensors")).items():
        mean = (of_6[name] + of_8[name] + of_10[name] + of_12[name] + of_14[name]) / 5
        torch.testing.assert_close(average, mean)


def test_damage_done_before_the_loss_shows_it_is_undone(tmp_path, monkeypatch):
    """The update of step 5 ruins the weights; every later loss is high, whatever the data."""
    update = TrainingState.update

    def ruin(state, step):
        update(state, step)
        if step == 5:
            with torch.no_grad():
                for weight in state.model.parameters():
                    weight.mul_(4)

    expected = by_hand(tmp_path / "hand", range(4, 8))
    monkeypatch.setattr(TrainingState, "update", ruin)
    folder = tmp_path / "ruined"
    folder.mkdir()
    outcome = train(folder, settings=spiking("rewind", threshold=8.0))
    assert marked(folder, outcome, "rewound_steps") == {7: 4.0}
    assert_same_state(expected, (folder, outcome))


@pytest.fixture(scope="module")
def gone_back(world, tmp_path_factory):
    """Two spikes, at 6 and at 11: undisturbed."""
    folder = tmp_path_factory.mktemp("gone-back")
    outcome = train(folder, settings=spiking("rewind"), source=TWO_SPIKES)
    assert marked(folder, outcome, "rewound_steps") == {7: 4.0, 12: 3.0}
    assert_same_state(by_hand(folder / "hand", [4, 5, 6, 7, 10, 11, 12]), (folder, outcome))
    return folder, outcome


TWO_SPIKES = MadeUpSource(loud=[6, 7, 11, 12])


@pytest.mark.parametrize("crashes", [[7], [8], [9], [5, 8, 11], [13, 14]])
def test_a_kill_before_or_after_going_back_leaves_no_trace(gone_back, tmp_path, crashes):
    """A kill at 8 and 13 is after the weights went back and before a checkpoint of that."""
    for step in crashes:
        with pytest.raises(InterruptedError):
            train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES, stop_after=step)
    outcome = train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES)
    assert_same_run(gone_back, (tmp_path, outcome))


def test_a_kill_just_after_the_checkpoint_of_going_back_leaves_no_trace(
    gone_back, tmp_path, monkeypatch
):
    save = Saver.save

    def last_save(saver, *arguments, step, **named):
        save(saver, *arguments, step=step, **named)
        if step == 8:
            raise InterruptedError(step)

    monkeypatch.setattr(Saver, "save", last_save)
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES)
    monkeypatch.undo()
    gone = [{"first": 4, "begin": 6, "last": 7}]
    assert read_record(tmp_path, 8)["spikes"]["rewinds"] == gone
    # What was seen on the way that was given up is no measure of later steps.
    seen = [row["loss"] for row in rows(*gone_back)[:4]]
    assert read_record(tmp_path, 8)["spikes"]["history"]["loss"] == seen
    assert contents(tmp_path, 8) == contents(tmp_path, 4) != contents(tmp_path, 6)
    outcome = train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES)
    assert_same_run(gone_back, (tmp_path, outcome))


@pytest.mark.parametrize("stopped", [5, 7, 11])
def test_being_asked_to_stop_on_the_way_does_not_change_how_far_it_goes_back(
    gone_back, tmp_path, stopped
):
    """A stop saves out of turn, and one checkpoint alone is to be kept."""
    settings = spiking("rewind", keep_checkpoints=1)
    asked = iter(range(STEPS + 1))
    with pytest.raises(StoppedError):
        train(
            tmp_path, settings=settings, source=TWO_SPIKES, stop=lambda: next(asked) + 1 == stopped
        )
    assert steps_saved(tmp_path)[-1] == stopped
    assert_same_run(gone_back, (tmp_path, train(tmp_path, settings=settings, source=TWO_SPIKES)))


def test_checkpoints_stay_while_they_may_be_gone_back_to(tmp_path):
    settings = spiking("rewind", keep_checkpoints=1, rewind_margin_steps=5)
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=settings, stop_after=13)
    assert steps_saved(tmp_path) == [6, 8, 10, 12]


def test_the_end_names_steps_and_documents_when_it_went_back_often_enough(tmp_path):
    settings = spiking("rewind", max_rewinds=1)
    told = (
        r"step 12: the loss has stayed high since step 11: loss .* deviations above .*gone back 1 times "
        r"already \(max_rewinds\), over steps 4 to 7; its data: lane 0: document-12-0-0"
    )
    with pytest.raises(SpikeError, match=told):
        train(tmp_path, settings=settings, source=TWO_SPIKES)
    assert (tmp_path / "run/faults/step-000011.json").exists()


def test_without_a_checkpoint_from_before_the_run_ends(tmp_path):
    with pytest.raises(SpikeError, match="no whole checkpoint from before step 6 to go back to"):
        train(tmp_path, settings=spiking("rewind", every=7), source=TWO_SPIKES)


def test_where_no_checkpoint_is_old_enough_the_oldest_is_taken_and_that_is_said(tmp_path, caplog):
    settings = spiking("rewind", rewind_margin_steps=6)
    with caplog.at_level(logging.WARNING, "transfusion"):
        outcome = train(tmp_path, settings=settings, source=MadeUpSource(loud=[6, 7]))
    assert "no checkpoint is 6 steps older than step 6" in caplog.text
    assert marked(tmp_path, outcome, "rewound_steps") == {7: 6.0}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog):
    with pytest.raises(InterruptedError):
        train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES, stop_after=7)
    assert steps_saved(tmp_path) == [4, 6]
    torn = tmp_path / read_record(tmp_path, 4)["files"][0]["path"]
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(SpikeError, match="no whole checkpoint from before step 6"):
        train(tmp_path, settings=spiking("rewind"), source=TWO_SPIKES)
    assert "checkpoint of step 4 is not used" in caplog.text


def rewind_in_two(folder):
    from torch import distributed as dist

    outcome = train(folder, settings=spiking("rewind"), source=TWO_SPIKES)
    (folder / f"rank-{dist.get_rank()}.txt").touch()
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))


def test_two_ranks_agree_when_to_go_back_and_how_far(gone_back, tmp_path):
    in_world(2, rewind_in_two, tmp_path)
    assert len(list(tmp_path.glob("rank-*.txt"))) == 2
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    for mark in ("spike", "rewound_steps"):
        assert marked(tmp_path, outcome, mark) == marked(*gone_back, mark)
    losses, alone = (
        [row["loss"] for row in rows(*run)] for run in ((tmp_path, outcome), gone_back)
    )
    assert losses == pytest.approx(alone, rel=1e-4)
