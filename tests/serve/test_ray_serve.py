"""The endpoint as users meet it: Ray Serve behind HTTP, asked by OpenAI's own client."""

import base64
import io
import socket
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.serve.config import EndpointConfig

pytestmark = pytest.mark.ray


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from transfusion.serve.app import AppArgs, start_endpoint, stop_endpoint

    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    package = tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)
    endpoint = EndpointConfig(port=free_port(), max_body_bytes=100_000)
    yield start_endpoint(AppArgs(model=str(package), endpoint=endpoint))
    stop_endpoint()


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
    assert httpx.get(f"{address}/health", timeout=30).json()["status"] == "ok"
