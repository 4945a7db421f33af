"""Which timesteps a uniform number stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig
from transfusion.diffusion.times import timestep_at

FLOW = {"schedule": "straight", "target": "flow"}


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1000))
def test_by_default_all_timesteps_are_alike(chance, limit):
    assert timestep_at(chance, ObjectiveConfig(), limit=limit) == int(chance * limit)


@given(
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 1000),
    st.floats(-10, 10),
    st.floats(0.01, 10),
    st.floats(1, 3),
)
def test_a_timestep_is_below_its_limit_and_later_for_a_larger_number(a, b, limit, mean, std, shift):
    objective = ObjectiveConfig(
        **FLOW,
        timestep_draw="logit_normal",
        logit_mean=mean,
        logit_std=std,
        timestep_shift=shift,
    )
    first, second = (timestep_at(x, objective, limit=limit) for x in sorted((a, b)))
    assert 0 <= first <= second < limit


@pytest.mark.parametrize(
    ("mean", "std", "shift"), [(0.0, 1.0, 1.0), (0.5, 0.8, 1.0), (0.0, 1.0, 3.0)]
)
def test_logit_normal_timesteps_are_normal_behind_the_logit(mean, std, shift):
    objective = ObjectiveConfig(
        **FLOW,
        timestep_draw="logit_normal",
        logit_mean=mean,
        logit_std=std,
        timestep_shift=shift,
    )
    chances = (np.arange(20_000) + 0.5) / 20_000
    times = (
        np.array([timestep_at(chance, objective, limit=1000) + 0.5 for chance in chances]) / 1000
    )
    logits = np.log(times / (1 - times))
    # A shift by s moves the logit by log s.
    assert logits.mean() == pytest.approx(mean + np.log(shift), abs=0.01)
    assert logits.std() == pytest.approx(std, abs=0.01)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target": "flow"}, "go together"),
        ({"schedule": "straight"}, "go together"),
        ({"schedule": "straight", "target": "v"}, "got target 'v' with schedule 'straight'"),
        ({"timestep_shift": 3.0}, "only 'straight' is shifted"),
        ({"timestep_shift": 0.5, **FLOW}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        NoiseConfig(**values)


def test_the_default_objective_has_the_identity_that_it_always_had():
    assert ObjectiveConfig().identity() == {}
    assert ObjectiveConfig(schedule="linear", noise_limit=400).identity() == {
        "schedule": "linear",
        "noise_limit": 400,
    }


@pytest.mark.parametrize("field", ObjectiveConfig.model_fields)
def test_every_field_is_part_of_the_identity(field):
    changed = {
        "schedule": "linear",
        "num_timesteps": 900,
        "target": "v",
        "timestep_shift": 2.0,
        "variance": "learned_range",
        "diffusion_weight": 1.0,
        "lm_weight": 0.01,
        "vlb_weight": 0.01,
        "z_loss_weight": 1e-5,
        "noise_limit": 400,
        "timestep_draw": "logit_normal",
        "logit_mean": 0.5,
        "logit_std": 0.5,
        "loss_weighting": "min_snr",
        "min_snr_gamma": 4.0,
    }
    flow = FLOW if field == "timestep_shift" else {}
    base = ObjectiveConfig(**flow).identity()
    assert ObjectiveConfig(**flow, **{field: changed[field]}).identity() != base
