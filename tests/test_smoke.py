"""The main job runs, always: raw images and text to a packaged, scored and reported model.

One run of `jobs/smoke.yaml` on local disk serves most promises here; a second on a real S3 server and a third
that is killed half-way must come to the same content.
"""

import base64
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests import chaos
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import read_rejects
from transfusion.ingest.reader import MixtureReader
from transfusion.resources import Resources
from transfusion.runner.run import StageResult, run_job
from transfusion.runner.show import job_status, model_folder
from transfusion.runner.show_batch import batch_status, job_batch
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMOKE = Path(__file__).parents[1] / "jobs" / "smoke.yaml"
LOG = logging.getLogger("tests")


def run(*overrides: str) -> dict[str, StageResult]:
    results = run_job(read_job(SMOKE, overrides), resources=Resources(), log=LOG)
    return {result.planned.stage.name: result for result in results}


def digests(results: dict[str, StageResult]) -> dict[str, str]:
    return {name: result.artifact.manifest.digest for name, result in results.items()}


@pytest.fixture(scope="module")
def smoke(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, StageResult]]:
    store = str(tmp_path_factory.mktemp("smoke"))
    return f"store={store}", run(f"store={store}")


def artifact(smoke: tuple[str, dict[str, StageResult]], name: str) -> Artifact:
    return smoke[1][name].artifact


def test_every_stage_makes_its_artifact_and_every_row_is_accounted_for(smoke) -> None:
    assert all(result.ran for result in smoke[1].values())
    for result in smoke[1].values():
        outcomes = result.artifact.manifest.content.outcomes
        if outcomes is not None:
            outcomes.check(result.planned.stage.name)
    assert artifact(smoke, "latents").manifest.content.outcomes.written == 256
    assert read_rejects(artifact(smoke, "latents")).num_rows == 0


def test_a_second_run_finds_everything(smoke) -> None:
    assert not any(result.ran for result in run(smoke[0]).values())


def test_a_new_mix_encodes_and_tokenizes_nothing(smoke, caplog: pytest.LogCaptureFixture) -> None:
    override = "stages.mixture.config.sources.prose.weight=3.0"
    job = read_job(SMOKE, [smoke[0], override])
    plan = {item.stage.name: item for item in plan_job(job, open_store(job.file.store))}
    cached = {name for name, item in plan.items() if item.status == "cached"}
    assert cached == {
        "images",
        "prose",
        "pixels",
        "autoencoder",
        "latents",
        "tokenizer",
        "captions",
        "tokens",
    }
    assert plan["mixture"].status == "changed"
    assert plan["mixture"].reasons == ("config.sources.prose.weight 1.0 -> 3.0",)


def test_the_report_is_one_file_that_needs_no_other(smoke) -> None:
    page = artifact(smoke, "report").read("report.html").decode()
    assert "smoke" in page
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_training_says_how_long_each_step_waited_for_data(smoke) -> None:
    rows = map(json.loads, artifact(smoke, "train").read("metrics.jsonl").splitlines())
    timings = [row["timing"] for row in rows if row["kind"] == "train"]
    assert timings
    assert all(0 <= timing["data_s"] <= timing["step_s"] for timing in timings)
    assert "Waiting for data: " in artifact(smoke, "report").read("report.html").decode()


def test_a_batch_of_the_job_is_that_of_its_run(smoke) -> None:
    shown = job_batch(SMOKE, [smoke[0]], 3, 1)
    assert shown == batch_status(artifact(smoke, "train"), 3, 1)
    config = next(
        stage for stage in read_job(SMOKE, [smoke[0]]).stages if stage.name == "train"
    ).config
    reader = MixtureReader(artifact(smoke, "mixture"), seed=config.seed, objective=config.objective)
    batch = reader.micro_batch(3, 1)
    drawn = [
        one["timestep"] for part in shown["sequences"] for one in part if one["role"] == "image"
    ]
    assert drawn == batch.timesteps[batch.image_weight > 0].tolist() != []


def test_show_tells_status_and_metrics_as_json(smoke) -> None:
    stages = json.loads(json.dumps(job_status(SMOKE, [smoke[0]])))["stages"]
    assert {stage["status"] for stage in stages.values()} == {"cached"}
    metrics = stages["evaluation"]["metrics"]
    for name in ("single_object.color_accuracy", "single_object.color_shape_accuracy", "caption.color_accuracy",
                 "autoencoder.psnr_db", "text.bits_per_byte"):  # fmt: skip
        assert name in metrics


def test_the_package_draws_the_same_picture_for_the_same_seed(smoke, tmp_path: Path) -> None:
    from transfusion.sample.command import sample_to_files
    from transfusion.sample.params import SamplingParams

    folder = model_folder(SMOKE, [smoke[0]])
    params = SamplingParams(num_inference_steps=10, solver="dpm++", seed=5)
    for name in ("one", "two"):
        sample_to_files(
            folder, prompt="a red circle", image=None, out_dir=tmp_path / name, params=params
        )
    first, second = (
        [file.read_bytes() for file in sorted((tmp_path / name).glob("*.png"))]
        for name in ("one", "two")
    )
    assert first == second
    assert [Image.open(io.BytesIO(data)).size for data in first] == [(32, 32)]


@pytest.fixture(scope="module")
def endpoint(smoke) -> Iterator[str]:
    from tests.s3 import free_port
    from transfusion.serve.app import AppArgs, start_endpoint, stop_endpoint
    from transfusion.serve.config import EndpointConfig

    args = AppArgs(
        model=str(model_folder(SMOKE, [smoke[0]])), endpoint=EndpointConfig(port=free_port())
    )
    yield start_endpoint(args)
    stop_endpoint()


def test_an_answer_names_the_run_that_trained_its_model(smoke, endpoint: str) -> None:
    import httpx

    told = httpx.get(f"{endpoint}/health", timeout=60).headers["x-model-lineage"]
    assert told == artifact(smoke, "train").manifest.fingerprint


def test_the_openai_client_gets_an_image_and_a_completion(endpoint: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{endpoint}/v1", api_key="none", max_retries=0)
    image = client.images.generate(
        prompt="a red circle",
        size="32x32",
        response_format="b64_json",
        extra_body={"num_inference_steps": 50},
    )
    assert Image.open(io.BytesIO(base64.b64decode(image.data[0].b64_json or ""))).size == (32, 32)
    completion = client.completions.create(
        model=client.models.list().data[0].id, prompt="The", max_tokens=4
    )
    assert completion.choices[0].finish_reason in {"length", "stop"}
    with pytest.raises(openai.BadRequestError, match="size"):
        client.images.generate(prompt="a red circle", size="31x31")  # type: ignore[arg-type]


def test_a_job_on_s3_that_was_killed_half_way_comes_to_the_content_on_disk(
    smoke, s3_environment: dict[str, str]
) -> None:
    """A fresh Ray each: workers inherit the variables that reach the server when they are started."""
    overrides = ["store=s3://bucket/smoke"]
    environment = os.environ | s3_environment
    # While the autoencoder trains, on a machine of any speed.
    killed, again = (
        chaos.run_job(
            SMOKE, overrides, kill_after_s=after_s, driver_only=False, environment=environment,
            counted_from=said,
        )
        for after_s, said in ((smoke[1]["autoencoder"].seconds / 2, "  autoencoder "), (None, None))
    )  # fmt: skip
    assert not killed.finished
    assert " cached: " in again.output, "the killed run left nothing"
    found = chaos.digests(SMOKE, overrides, environment=environment)
    assert {name: stage["digest"] for name, stage in found.items()} == digests(smoke[1])
