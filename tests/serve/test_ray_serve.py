"""The endpoint as users meet it: Ray Serve behind HTTP, asked by OpenAI's own client."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.s3 import free_port
from tests.serve.serving import until
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.serve.config import EndpointConfig


@pytest.fixture(scope="module")
def address(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from transfusion.serve.app import AppArgs, start_endpoint

    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    package = tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick, sequence_length=128)
    endpoint = EndpointConfig(port=free_port(), max_body_bytes=100_000)
    yield start_endpoint(AppArgs(model=str(package), endpoint=endpoint))
    # The last test has stopped it; where only others run nobody has.
    serve.shutdown()


@pytest.mark.ray
def test_openais_client_gets_pictures_text_and_errors_it_understands(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data

    answer = client.images.generate(
        model=model.id,
        prompt="a red circle",
        n=2,
        size="16x16",
        response_format="b64_json",
        extra_body={"num_inference_steps": 12, "guidance_scale": 2.0, "seed": 1},
    )
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one.b64_json)))) for one in answer.data
    ]
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 2

    completion = client.completions.create(
        model=model.id, prompt="a red", max_tokens=5, temperature=0
    )
    assert completion.choices[0].finish_reason in ("stop", "length")
    assert completion.usage.completion_tokens <= 5

    with pytest.raises(openai.BadRequestError, match="size: must be '16x16'") as bad:
        client.images.generate(model=model.id, prompt="a red circle", size="1024x1024")
    assert bad.value.param == "size"
    with pytest.raises(openai.BadRequestError, match="must not be empty"):
        client.images.generate(model=model.id, prompt="")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-5", prompt="x")
    with pytest.raises(openai.APIStatusError) as long:
        client.images.generate(model=model.id, prompt="x" * 200_000)
    assert long.value.status_code == 413
    assert client.images.generate(model=model.id, prompt="a blue square").data


@pytest.mark.ray
def test_openais_client_chats_streams_and_edits(address: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list().data
    said = {"role": "user", "content": "a red"}
    more = {"model": model.id, "messages": [said], "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**more).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**more, stream=True, stream_options={"include_usage": True})
    )
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole
    assert chunks[-1].usage is not None

    drawn = client.chat.completions.create(
        **more | {"temperature": 1.0}, extra_body={"modalities": ["image"], "seed": 1}
    )
    (part,) = drawn.choices[0].message.content
    assert part["image_url"]["url"].startswith("data:image/png;base64,")

    events = list(
        client.images.generate(model=model.id, prompt="a red circle", stream=True, partial_images=2)
    )
    assert [event.type for event in events][-1] == "image_generation.completed"
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, format="PNG")
    edited = client.images.edit(
        model=model.id, image=("a.png", buffer.getvalue()), prompt="make it blue"
    )
    assert edited.data[0].b64_json


@pytest.mark.ray
def test_an_oversized_body_is_refused_and_the_server_goes_on(address: str) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(500):
            sent += 100_000
            yield b"x" * 100_000

    try:
        answer = httpx.post(f"{address}/v1/completions", content=chunks(), timeout=30)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server hung up while we were still sending
    health = httpx.get(f"{address}/health", timeout=30)
    assert health.json()["status"] == "ok"
    assert len(health.headers.get_list("x-request-id")) == 1


@pytest.mark.ray
def test_an_answer_of_many_megabytes_comes_whole(address: str) -> None:
    # gRPC between Serve's proxy and its replicas would stop at 4 MiB by itself.
    body = {
        "prompt": ["a red circle, " * 25] * 20,
        "n": 10,
        "max_tokens": 1,
        "echo": True,
        "logprobs": 20,
    }
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text[:300]
    assert len(answer.content) > 4.5 * 2**20
    assert len(answer.json()["choices"]) == 200


@pytest.mark.ray
def test_a_caller_who_is_out_of_time_is_told_in_the_shape_of_errors(address: str) -> None:
    """Serve's proxy has a header for it too, and answers that in plain text."""
    answer = httpx.post(
        f"{address}/v1/images/generations",
        json={"prompt": "a red circle"},
        headers={"x-timeout-seconds": "0.001"},
    )
    assert answer.status_code == 408
    assert answer.json()["error"]["type"] == "timeout_error"


@pytest.mark.ray
def test_rays_own_metrics_have_each_replicas_numbers(address: str) -> None:
    import ray

    drawn = httpx.post(f"{address}/v1/images/generations", json={"prompt": "red"}, timeout=60)
    assert drawn.is_success
    node = ray.nodes()[0]
    where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until(lambda: "ray_transfusion_images_total{" in httpx.get(where, timeout=30).text, 60)
    text = httpx.get(where, timeout=30).text
    line = next(line for line in text.splitlines() if line.startswith("ray_transfusion_images_t"))
    assert 'deployment="Sampler"' in line
    assert 'replica="' in line
    assert "ray_transfusion_step_seconds_bucket{" in text


@pytest.mark.ray
def test_no_key_and_no_prompt_is_in_any_log_of_rays(address: str) -> None:
    from ray._private.worker import _global_node

    key, prompt = "canary-key-7c1e", "canary-prompt-40fd"
    for path in ("images/generations", "completions", "nothing"):
        httpx.post(
            f"{address}/v1/{path}?api_key={key}",
            json={"prompt": prompt, "num_inference_steps": 10},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
    logs = [place for place in Path(_global_node.get_logs_dir_path()).rglob("*") if place.is_file()]
    assert any("Sampler" in place.name for place in logs), "the control: a replica's own log"
    for place in logs:
        text = place.read_bytes()
        for canary in (key, prompt):
            assert canary.encode() not in text, place


@pytest.mark.ray
def test_a_request_under_way_when_the_endpoint_stops_is_answered(address: str) -> None:
    from transfusion.serve.app import stop_endpoint

    body = {
        "prompt": "red", "n": 10, "num_inference_steps": 250, "stream": True, "partial_images": 3,
    }  # fmt: skip
    url = f"{address}/v1/images/generations"
    with httpx.stream("POST", url, json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: image_generation.partial_image"
        stop_endpoint()
        events = [line for line in lines if line.startswith("event: ")]
    assert events.count("event: image_generation.completed") == 10
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", timeout=30)


def test_a_serve_config_file_builds_the_application_from_plain_values(tmp_path: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    from transfusion.serve.app import build_app

    args = {
        "model": str(tmp_path),
        "endpoint": {"max_batch_size": 4, "request_timeout_s": 60},
        "resources": {"max_replicas": 2, "gpus_per_replica": 1},
    }
    built = call_user_app_builder_with_args_if_necessary(build_app, args)
    deployment = built._bound_deployment
    assert deployment.ray_actor_options["num_gpus"] == 1
    config = deployment._deployment_config
    assert config.max_ongoing_requests > 4
    assert 0 < config.max_queued_requests < 1000
    with pytest.raises(ValueError, match="max_batch_sise"):
        call_user_app_builder_with_args_if_necessary(
            build_app, args | {"endpoint": {"max_batch_sise": 4}}
        )


def test_keys_are_in_no_argument_of_the_application(tmp_path: Path, monkeypatch) -> None:
    from transfusion.serve.app import AppArgs, build_app

    monkeypatch.setenv("TRANSFUSION_API_KEYS", "canary-secret")
    built = build_app(AppArgs(model=str(tmp_path)))
    assert "canary-secret" not in repr(built._bound_deployment.init_args)


def test_a_model_is_found_by_its_address_in_a_store(tmp_path: Path) -> None:
    from tests.pipeline import commit
    from transfusion.artifacts.publish import publish_folder
    from transfusion.errors import ArtifactError
    from transfusion.package import STAGE
    from transfusion.serve.replica import package_folder
    from transfusion.stage import Made
    from transfusion.storage.store import open_store

    package = tiny_package(tmp_path / "tiny")
    store = open_store(str(tmp_path / "store"))
    uses = "transfusion.package"
    files = publish_folder(store, f"{uses}/files", package)
    artifact = commit(store, uses, STAGE, "c" * 64, {}, {}, Made(files=files))
    found = package_folder(f"{tmp_path}/store/{artifact.path}")
    assert (found / "config.json").read_bytes() == (package / "config.json").read_bytes()
    assert package_folder(str(package)) == package
    with pytest.raises(ArtifactError, match="is no model package"):
        package_folder(str(tmp_path))
