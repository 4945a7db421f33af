"""A step stands out by the steps before it alone, and only checkpoints from before it are gone back to."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.worlds import config
from transfusion.config import validate
from transfusion.train.checkpoints.record import CheckpointRecord
from transfusion.train.spikes import (
    LEAST_DEVIATION,
    Rewind,
    SpikeConfig,
    SpikeMemory,
    checkpoints_before,
    judge,
    rewound,
    standing,
)

often = settings(deadline=None, max_examples=40)
SMALL = SpikeConfig(threshold=8, window_steps=20, min_history_steps=10, rewind_after_steps=3)


def watch(losses, spikes=SMALL, norms=None):
    """Steps that stand out, with what of them does."""
    memory, found = SpikeMemory(), {}
    for step, loss in enumerate(losses):
        values = {"loss": loss, "grad_norm": norms[step] if norms else 1.0}
        told, memory = judge(memory, spikes, step=step, values=values)
        if told:
            found[step] = sorted(told)
    return found, memory


def noise(seed, count):
    draw = random.Random(seed)
    return [2 + 0.1 * draw.gauss(0, 1) for _ in range(count)]


def test_a_standing_is_what_is_computed_by_hand():
    # Median 3, distances 2 1 0 1 2 with median 1.
    stands = standing(10.0, [1.0, 5.0, 3.0, 4.0, 2.0])
    assert (stands.median, stands.steps) == (3.0, 5)
    assert stands.deviations == pytest.approx(7 / 1.4826)
    # Even counts take the mean of the middle two: median 2.5, distances .5 .5 1.5 97.5 with median 1.
    assert standing(0.0, [1.0, 2.0, 3.0, 100.0]).deviations == pytest.approx(-2.5 / 1.4826)
    # No spread: a thousandth of the median stands in.
    assert standing(2.02, [2.0] * 9).deviations == pytest.approx(10)
    assert standing(1e-9, [0.0] * 9).deviations == math.inf
    assert standing(0.0, [0.0] * 9).deviations == 0
    assert stands.told("loss") == ("loss 10 is 4.7 deviations above 3, the median of 5 steps")


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.floats(-1e6, 1e6))
def test_median_and_deviation_are_numpys(before, value):
    stands = standing(value, before)
    middle = np.median(before)
    deviation = max(1.4826 * np.median(np.abs(before - middle)), LEAST_DEVIATION * abs(middle))
    assert stands.median == middle
    if deviation > 1e-300:
        assert stands.deviations == pytest.approx((value - middle) / deviation, rel=1e-9, abs=1e-9)


@often
@given(st.integers(0, 2**32))
def test_noise_alone_does_not_stand_out(seed):
    assert watch(noise(seed, 300), SpikeConfig())[0] == {}


@often
@given(st.lists(st.floats(-0.5, 0.5), max_size=60), st.floats(1e-3, 1e3))
def test_what_is_within_the_least_deviations_of_a_constant_never_stands_out(waves, level):
    near = [level * (1 + 0.9 * SMALL.threshold * LEAST_DEVIATION * wave) for wave in waves]
    assert watch(near)[0] == {}


@often
@given(st.integers(0, 2**32), st.integers(50, 190), st.sampled_from(["loss", "grad_norm"]))
def test_a_planted_spike_is_found_where_it_is_and_nowhere_else(seed, place, name):
    series = {"loss": noise(seed, 200), "grad_norm": noise(seed + 1, 200)}
    series[name][place] += 3
    found, _ = watch(series["loss"], SpikeConfig(), norms=series["grad_norm"])
    assert found == {place: [name]}


@often
@given(st.integers(0, 2**32), st.integers(-20, 20), st.integers(0, 99))
def test_the_unit_of_the_loss_does_not_matter(seed, power, place):
    losses = noise(seed, 100)
    losses[place] += 2
    scaled = [loss * 2.0**power for loss in losses]
    assert watch(losses)[0] == watch(scaled)[0]


def test_nothing_stands_out_before_enough_was_seen_nor_by_falling():
    assert watch([1.0] * 9 + [50.0])[0] == {}
    assert watch([1.0] * 10 + [50.0])[0] == {10: ["loss"]}
    assert watch([9.0] * 10 + [1.0])[0] == {}


def test_steps_in_a_row_are_counted_by_the_loss_and_a_level_that_stays_is_the_new_one():
    calm = [1.0, 1.1, 1.2] * 7
    losses = [*calm, 9.0, 9.0, 9.0]
    _, memory = watch(losses)
    assert memory.high == [21, 22, 23]
    assert watch([*losses, 1.0])[1].high == []
    assert memory.history == {"loss": losses[-20:], "grad_norm": [1.0] * 20}
    found, memory = watch([*calm, 1.0, 1.0], norms=[1.0] * 21 + [9.0] * 2)
    assert found == {21: ["grad_norm"], 22: ["grad_norm"]}
    assert memory.high == []
    found, _ = watch([*calm, *[9.0, 9.1] * 20])
    assert list(found) == list(range(21, 31)), "until they are half of the window"


@often
@given(st.integers(0, 2**32), st.integers(0, 120))
def test_a_memory_that_went_through_a_record_judges_the_same(seed, cut):
    losses = [loss * (9 if step % 37 == 0 else 1) for step, loss in enumerate(noise(seed, 120))]
    whole, _ = watch(losses)
    _, memory = watch(losses[:cut])
    record = CheckpointRecord(
        fingerprint="f", step=cut, attempt="a", world_size=1, files=[], metrics=[], spikes=memory
    )
    memory = CheckpointRecord.model_validate_json(record.model_dump_json()).spikes
    found = {}
    for step, loss in list(enumerate(losses))[cut:]:
        values = {"loss": loss, "grad_norm": 1.0}
        told, memory = judge(memory, SMALL, step=step, values=values)
        if told:
            found[step] = sorted(told)
    assert found == {step: names for step, names in whole.items() if step >= cut}


def test_the_checkpoint_gone_back_to_is_older_than_the_spike_by_the_margin():
    spikes = SpikeConfig(rewind_margin_steps=10)

    def before(begin, rewinds=()):
        return checkpoints_before(begin, config=spikes, every=5, rewinds=rewinds)

    assert before(31) == [5, 10, 15, 20]
    assert before(30) == [5, 10, 15, 20]
    # Where none is so old the oldest; never one that the first high loss may be the doing of.
    assert before(8) == [5]
    assert before(5) == []
    assert before(0) == []
    # 20 to 33 were passed over: 25 and 30 are of weights that were given up, 34 is of those of 20.
    gone = [Rewind(first=20, begin=31, last=33)]
    assert before(43, gone) == [5, 10, 15, 20]
    assert before(44, gone) == [5, 10, 15, 20, 34]
    assert before(45, gone) == [5, 10, 15, 20, 34, 35]


@often
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 2**32))
def test_checkpoints_gone_back_to_hold_only_updates_that_the_run_still_has(every, margin, seed):
    """Against a run that writes down which updates its weights have had."""
    draw, spikes = random.Random(seed), SpikeConfig(rewind_margin_steps=margin)
    updates, saved, memory = [], {}, SpikeMemory()
    for step in range(80):
        begin = step - draw.randrange(3)
        offered = checkpoints_before(begin, config=spikes, every=every, rewinds=memory.rewinds)
        mine = [
            place
            for place, had in sorted(saved.items())
            if place < begin
            and place <= max(begin - margin, every)
            and had == [one for one in updates if one < place]
        ]
        assert set(offered) <= set(mine)
        # Some that were passed over hold what the newest offered one holds; none holds more.
        assert bool(offered) == bool(mine)
        assert not offered or saved[offered[-1]] == saved[mine[-1]]
        if offered and draw.random() < 0.1:
            memory = memory.model_copy(update={"high": [begin]})
            memory = rewound(memory, SpikeMemory(), step=step, to=offered[-1])
            updates = list(saved[offered[-1]])
            saved[step + 1] = list(updates)
        else:
            updates.append(step)
            if (step + 1) % every == 0:
                saved[step + 1] = list(updates)


def test_settings_that_could_not_work_are_refused():
    for values, told in [
        ({"window_steps": 40}, "at most window_steps"),
        ({"rewind_after_steps": 26}, "half of min_history_steps"),
    ]:
        found, faults = validate(SpikeConfig, values, where="spikes")
        assert found is None
        assert told in faults[0]


def test_a_run_that_does_not_ask_keeps_its_identity():
    assert not {"on_spike", "spikes"} & set(config().identity())
    assert config(on_spike="skip").identity() != config().identity()
