"""Whether a model can be trained on a plan: told of a job before it runs, and of the plan itself."""

import re
from pathlib import Path

import pytest

from tests.tiny import model_config
from tests.train.worlds import config
from transfusion.artifacts.mixture import Mixture
from transfusion.config import read_yaml
from transfusion.errors import ArtifactError, SpecError
from transfusion.spec.job import check_job, read_job
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
        (
            "jobs/editing.yaml",
            ["model.dim=96", "model.patch_positions=raster"],
            [
                r"train\.config\.init_from: its dim is 192, the model's 96",
                r"init_from: its hidden_dim is 512, the model's 256",
                "init_from: its patch_positions is 'sinusoidal_2d', the model's 'raster'",
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


@pytest.mark.parametrize(
    ("job", "overrides", "told"),
    [
        (
            "jobs/quickstart.yaml",
            ["latents.config.image_size_px=33"],
            r"latents\.config\.image_size_px: sides must be multiples of 4, .* got 33 x 33",
        ),
        (
            "jobs/chameleon.yaml",
            ["pairs.config.image_size_px=34"],
            r"pairs\.config\.image_size_px: sides must be multiples of 4, .* got 34 x 34",
        ),
        (
            "jobs/ablations/base.yaml",
            ["mixture.config.layout.patch_size=3", "train.config.model.patch_size=3"],
            r"layout\.patch_size: must divide .* got 3 and latents of 8 x 8 in the source 'pairs'",
        ),
        (
            "jobs/quickstart.yaml",
            ["latents.config.image_size_px=64"],
            r"stages\.evaluation\.config: pixels are of 32 px and what the model learns of 64",
        ),
        (
            "jobs/quickstart.yaml",
            ["trian.config.steps=4"],
            r"stages\.trian: there is no such stage, or it lacks `uses`; did you mean 'train'\?",
        ),
    ],
)
def test_sizes_and_stages_that_do_not_fit_are_told_before_anything_is_made(job, overrides, told):
    with pytest.raises(SpecError) as caught:
        read_job(Path(job), [f"stages.{override}" for override in overrides])
    assert re.search(told, str(caught.value)), caught.value


def test_faults_of_other_stages_do_not_hide_what_does_not_fit():
    with pytest.raises(SpecError) as caught:
        read_job(
            Path("jobs/quickstart.yaml"),
            [f"{TRAIN}.steps=99999", "stages.evaluation.config.no_such_field=1"],
        )
    told = str(caught.value)
    assert "no_such_field" in told
    assert "the mixture plans 2100" in told


@pytest.mark.parametrize(
    ("stage", "inputs", "told"),
    [
        ("train", {}, "train.inputs.mixture: transfusion.train needs this input"),
        ("train", {"mixture": "autoencoder"}, "must be mixture, but 'autoencoder' makes"),
        ("model", {"mixture": "mixture"}, "model.inputs.run: transfusion.package needs"),
        (
            "evaluation",
            {"mixture": "mixture"},
            "evaluation.inputs.model: transfusion.evaluate needs",
        ),
        ("mixture", {"pairs": "pairs"}, "mixture.config.sources.prose.tokens: no input is named"),
    ],
)
def test_a_stage_whose_inputs_are_wrong_is_told_of_that_alone(stage, inputs, told):
    resolved = read_yaml(Path("jobs/quickstart.yaml"), [])
    resolved["stages"][stage]["inputs"] = inputs
    with pytest.raises(SpecError) as caught:
        check_job(resolved, name="job", where="job.yaml")
    assert any(told in fault for fault in caught.value.faults), caught.value.faults


def test_generated_images_are_drawn_by_a_solver_of_the_models_schedule():
    job = read_yaml(Path("jobs/ablations/base.yaml"), [])
    train = job["stages"]["train"]["config"]
    train["objective"] = {"schedule": "straight", "target": "flow"}
    for solver, number in ((None, 0), ("dpm++", 0), ("ddpm", 1)):
        config = {"seed": 0, "num_inference_steps": 100} | ({"solver": solver} if solver else {})
        job["stages"]["drawn"] = {
            "uses": "data_pipelines.generate",
            "inputs": {"prompts": "images", "model": "model"},
            "config": config,
        }
        try:
            check_job(job, name="job", where="job.yaml")
            faults = []
        except SpecError as error:
            faults = error.faults
        assert len(faults) == number
        assert all("stages.drawn.config.solver: solver must be one of" in one for one in faults)


def test_a_first_step_that_is_repeated_needs_no_more_of_the_plan():
    read_job(Path("jobs/overfit.yaml"), [f"{TRAIN}.repeat_first_step=true", f"{TRAIN}.steps=99999"])
