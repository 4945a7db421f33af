"""The estimate of a plan: what is known is arithmetic, what is not is a question mark."""

import logging
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import data_pipelines.pixels.run as body
from data_pipelines.shards import in_process
from transfusion.cli import app
from transfusion.runner.estimate import estimate
from transfusion.runner.profile import Profile, Rates, read_profile
from transfusion.runner.run import run_job
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store

RATES = {"images_per_second": 1000.0, "train_positions_per_second": 40_000.0, "price_per_hour": 2.5}

PROFILE = """
train: {num_workers: 2}
pool: {num_actors: 4}
rates: {images_per_second: 1000.0, train_positions_per_second: 40000.0, price_per_hour: 2.5}
"""


@pytest.fixture
def job(tmp_path: Path, repository: Path) -> tuple[Path, list[str]]:
    return repository / "jobs" / "quickstart.yaml", [f"store={tmp_path / 'store'}"]


def planned(job: tuple[Path, list[str]], *overrides: str):
    checked = read_job(job[0], [*job[1], *overrides])
    store = open_store(checked.file.store)
    return plan_job(checked, store), store


def test_hours_follow_from_rows_positions_and_rates(job) -> None:
    overrides = [
        "stages.images.config.num_images=3600000",
        "stages.train.config.steps=1000",
        "stages.mixture.config.num_steps=2000",
        "stages.mixture.config.lanes=64",
        "stages.mixture.config.sequences_per_micro_batch=4",
        "stages.mixture.config.sequence_length=4096",
    ]
    found = estimate(*planned(job, *overrides), Profile(rates=Rates(**RATES)))
    latents, train = found
    assert (latents.stage, latents.amount) == ("latents", 3_600_000)
    assert latents.hours == pytest.approx(1.0)
    assert (train.stage, train.amount) == ("train", 1000 * 64 * 4 * 4096)
    assert train.hours == pytest.approx(1000 * 64 * 4 * 4096 / 40_000 / 3600)


def test_flops_tell_the_hours_of_a_model_of_any_size(tmp_path: Path, repository: Path) -> None:
    profile = Profile.model_validate({"rates": {"train_tflops_per_second": 400.0}})
    sizes = {
        "{dim: 768, depth: 16, num_heads: 12}": 124e6,
        "{dim: 2048, depth: 24, num_heads: 16}": 1.26e9,
    }
    for shape, parameters in sizes.items():
        overrides = [
            "stages.mixture.config.sequence_length=4096",
            f"stages.train.config.model={shape}",
            "stages.train.config.model.adapter=linear",
        ]
        *_, train = estimate(
            *planned((repository / "jobs" / "quickstart.yaml", [f"store={tmp_path}"]), *overrides),
            profile,
        )
        # 6 a weight that multiplies; two of three of every position's head; queries against keys come on top.
        assert train.rate is not None
        flops = 400e12 / train.rate
        assert 6 * parameters < flops < 1.25 * 6 * parameters
    measured = Profile.model_validate(
        {"rates": {"train_tflops_per_second": 400.0, "train_positions_per_second": 7.0}}
    )
    *_, train = estimate(
        *planned((repository / "jobs" / "quickstart.yaml", [f"store={tmp_path}"])), measured
    )
    assert train.rate == 7.0


def test_without_rates_there_are_no_hours_and_no_identity_holds_them(job) -> None:
    plan, store = planned(job)
    dear, cheap = (
        estimate(plan, store, Profile(rates=Rates(**RATES | {"price_per_hour": price})))
        for price in (1.0, 9.0)
    )
    assert dear == cheap
    assert all("rates" not in str(one.payload) for one in plan)
    assert [one.hours for one in estimate(*planned(job), Profile())] == [None, None]


def test_rows_of_a_folder_are_unknown_until_something_was_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a square")
    file = tmp_path / "job.yaml"
    file.write_text(
        f"""
store: {tmp_path / "store"}
stages:
  images: {{uses: data_pipelines.sources.image_folder, config: {{path: {folder}}}}}
  autoencoder: {{uses: transfusion.train.autoencoder, inputs: {{images: pixels}},
                 config: {{steps: 1, batch_size: 2, seed: 0}}}}
  pixels: {{uses: data_pipelines.pixels, inputs: {{images: images}}, config: {{image_size_px: 8}}}}
  latents: {{uses: data_pipelines.encode_images, inputs: {{images: images, autoencoder: autoencoder}},
             config: {{image_size_px: 8}}}}
"""
    )
    profile = Profile(rates=Rates(**RATES))
    job = file, []
    [before] = estimate(*planned(job), profile)
    assert (before.stage, before.amount, before.hours) == ("latents", None, None)
    run = body.run
    monkeypatch.setattr(body, "run", lambda *given: run(*given, launch=in_process))
    monkeypatch.setattr("transfusion.runner.run.start_ray", lambda **_: None)
    run_job(read_job(file), resources=profile, until="pixels", log=logging.getLogger("tests"))
    [after] = estimate(*planned(job), profile)
    assert after.amount == 3


def test_the_command_tells_hours_time_cost_and_what_is_not_known(
    job: tuple[Path, list[str]], tmp_path: Path
) -> None:
    profile = tmp_path / "profile.yaml"

    def told(text: str, *overrides: str) -> str:
        profile.write_text(text)
        command = ["plan", str(job[0]), *job[1], *overrides, "--profile", str(profile)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.output

    output = told(PROFILE, "stages.images.config.num_images=3600000")
    assert "latents  3,600,000 images at 1,000/s: 1 accelerator-hours, 15m00s on 4, $2.50" in output
    positions = 2100 * 2 * 5 * 256
    hours = positions / 40_000 / 3600
    assert f"train    {positions:,} positions at 40,000/s: {hours:.3g} accelerator-hours" in output
    assert f"in all   {1 + hours:.3g} accelerator-hours, ${2.5 * (1 + hours):,.2f}" in output
    assert "not known" not in output
    output = told("rates: {images_per_second: 1000}")
    assert "train    5,376,000 positions at ?/s\n" in output
    assert "$?, and train, where something is not known (?)" in output
    assert "estimate" not in told(PROFILE, "--until", "captions")
    assert "no estimate: " in told("pool: {num_actors: 1}")


def test_a_rate_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text("rates: {images_per_second: 0}")
    with pytest.raises(Exception, match="images_per_second"):
        read_profile(file)
