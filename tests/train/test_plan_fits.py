"""Whether a model can be trained on a plan: told of a job before it runs, and of the plan itself."""

import re
from pathlib import Path

import pytest

from tests.tiny import model_config
from tests.train.worlds import config
from transfusion.artifacts.mixture import Mixture
from transfusion.errors import ArtifactError, SpecError
from transfusion.spec.job import read_job
from transfusion.train.run import check_plan

TRAIN = "stages.train.config"


@pytest.mark.parametrize(("embedding", "time_token"), [("token", False), ("mlp", True)])
def test_a_time_token_is_the_models_and_the_plans_or_neithers(embedding, time_token):
    model = model_config(adapter="linear", time_embedding=embedding)
    layout = {"patch_size": 2} | ({"time_token": True} if time_token else {})
    plan = Mixture.model_construct(layout=layout, steps=6, sources={})
    with pytest.raises(ArtifactError, match=r"layout\.time_token"):
        check_plan(config(model=model), plan)
    other = model_config(
        adapter="linear", time_embedding="mlp" if embedding == "token" else "token"
    )
    check_plan(config(model=other), plan)


@pytest.mark.parametrize(
    ("job", "overrides", "told"),
    [
        (
            "jobs/ablations/base.yaml",
            ["model.patch_size=4"],
            [r"model\.patch_size: is 4 but .* packed for 2"],
        ),
        ("jobs/quickstart.yaml", ["steps=99999"], [r"steps: is 99999 but the mixture plans 2100"]),
        (
            "jobs/ablations/base.yaml",
            ["model.time_embedding=token", "steps=99999"],
            ["mixture plans 750", r"needs layout\.time_token: true"],
        ),
        ("jobs/chameleon.yaml", ["model.weights=by_modality"], ["codes are words to a model"]),
        (
            "jobs/quickstart.yaml",
            ["objective.schedule=straight", "objective.target=flow"],
            [
                r"stages\.model\.config\.sampling\.solver: .* for a model of schedule 'straight', got 'ddpm'",
                r"stages\.evaluation\.config\.solver: .* got 'ddpm'",
            ],
        ),
    ],
)
def test_a_job_that_would_fail_hours_later_is_refused_with_all_of_it(job, overrides, told):
    with pytest.raises(SpecError) as caught:
        read_job(Path(job), [f"{TRAIN}.{override}" for override in overrides])
    assert len(caught.value.faults) == len(told)
    for fault, rule in zip(caught.value.faults, told, strict=True):
        assert re.search(rule, fault), fault


def test_faults_of_other_stages_do_not_hide_what_does_not_fit():
    with pytest.raises(SpecError) as caught:
        read_job(
            Path("jobs/quickstart.yaml"),
            [f"{TRAIN}.steps=99999", "stages.evaluation.config.no_such_field=1"],
        )
    told = str(caught.value)
    assert "no_such_field" in told
    assert "the mixture plans 2100" in told


def test_a_first_step_that_is_repeated_needs_no_more_of_the_plan():
    read_job(Path("jobs/overfit.yaml"), [f"{TRAIN}.repeat_first_step=true", f"{TRAIN}.steps=99999"])
