"""The endpoints in this process: what they answer, and how they refuse."""

import base64
import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.serving import until
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.loop import MAX_FAILED_STEPS
from transfusion.serve.service import Service

IMAGES, COMPLETIONS, CHAT = "/v1/images/generations", "/v1/completions", "/v1/chat/completions"
PICTURE_ELSEWHERE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}],
}


@pytest.fixture(scope="module")
def client(sampler: Sampler) -> Iterator[TestClient]:
    app = make_app(Service(sampler, EndpointConfig(max_tokens=50)))
    with TestClient(app) as client:
        yield client


def picture(data: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))))


def test_a_prompt_becomes_pictures(client: TestClient) -> None:
    answer = client.post(
        IMAGES, json={"prompt": "a red circle", "n": 3, "size": "16x16", "seed": 7}
    )
    assert answer.status_code == 200
    first, second, third = answer.json()["data"]
    assert picture(first).shape == (16, 16, 3)
    assert [one["seed"] for one in (first, second, third)] == [7, 8, 9]
    assert (picture(first) != picture(second)).any()


def test_a_seed_draws_the_same_picture_again(client: TestClient) -> None:
    body = {"prompt": "a red circle", "seed": 3}
    alone = client.post(IMAGES, json=body).json()["data"][0]
    among = client.post(IMAGES, json={"prompt": "a red circle", "seed": 2, "n": 3}).json()["data"][
        1
    ]
    difference = picture(alone).astype(int) - picture(among).astype(int)
    assert np.abs(difference).max() <= 1


def test_extensions_are_taken_at_the_top_and_inside_extra_body(client: TestClient) -> None:
    chosen = {"num_inference_steps": 12, "guidance_scale": 1.5, "seed": 5}
    top = client.post(IMAGES, json={"prompt": "blue", **chosen})
    nested = client.post(IMAGES, json={"prompt": "blue", "extra_body": chosen})
    assert top.status_code == nested.status_code == 200
    assert top.json()["data"] == nested.json()["data"]


def test_text_goes_on(client: TestClient) -> None:
    body = {"prompt": ["a red", "blue"], "max_tokens": 6, "n": 2, "temperature": 0}
    answer = client.post(COMPLETIONS, json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"] == answer["choices"][1]["text"]
    assert answer["usage"]["total_tokens"] == (
        answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )
    echoed = client.post(COMPLETIONS, json=body | {"echo": True}).json()
    assert echoed["choices"][0]["text"] == "a red" + answer["choices"][0]["text"]


def test_text_ends_before_a_stop(client: TestClient) -> None:
    body = {"prompt": "a red", "max_tokens": 8, "temperature": 0}
    (whole,) = client.post(COMPLETIONS, json=body).json()["choices"]
    assert len(whole["text"]) > 2
    stop = whole["text"][1:3]
    (cut,) = client.post(COMPLETIONS, json=body | {"stop": [stop]}).json()["choices"]
    assert cut["text"] == whole["text"].split(stop)[0]
    assert cut["finish_reason"] == "stop"


BAD = [
    (IMAGES, {}, "prompt"),
    (IMAGES, {"prompt": ""}, "prompt"),
    (IMAGES, {"prompt": "  \n"}, "prompt"),
    (IMAGES, {"prompt": 3}, "prompt"),
    (IMAGES, {"prompt": "\ud800"}, "prompt"),
    (IMAGES, {"prompt": "blue " * 500}, "prompt"),
    (IMAGES, {"prompt": "x", "size": "512x512"}, "size"),
    (IMAGES, {"prompt": "x", "size": "big"}, "size"),
    (IMAGES, {"prompt": "x", "n": 0}, "n"),
    (IMAGES, {"prompt": "x", "n": 11}, "n"),
    (IMAGES, {"prompt": "x", "n": True}, "n"),
    (IMAGES, {"prompt": "x", "num_inference_steps": 9}, "num_inference_steps"),
    (IMAGES, {"prompt": "x", "num_inference_steps": 251}, "num_inference_steps"),
    (IMAGES, {"prompt": "x", "guidance_scale": 21}, "guidance_scale"),
    (IMAGES, {"prompt": "x", "seed": -1}, "seed"),
    (IMAGES, {"prompt": "x", "seed": 2**63}, "seed"),
    (IMAGES, {"prompt": "x", "guidance_interval": [0.9, 0.1]}, "guidance_interval"),
    (IMAGES, {"prompt": "x", "partial_images": 4}, "partial_images"),
    (IMAGES, {"prompt": "x", "response_format": "url"}, "response_format"),
    (IMAGES, {"prompt": "x", "stream": "yes"}, "stream"),
    (IMAGES, {"prompt": "x", "surprise": 1}, "surprise"),
    (IMAGES, {"prompt": "x", "extra_body": 3}, None),
    (IMAGES, {"prompt": "x", "extra_body": {"surprise": 1}}, "surprise"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": []}, None),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 51}, "max_tokens"),
    (COMPLETIONS, {"prompt": "x" * 40, "max_tokens": 50}, "prompt"),
    (COMPLETIONS, {"prompt": "x", "temperature": 3}, "temperature"),
    (COMPLETIONS, {"prompt": "x", "top_p": 0}, "top_p"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": [1, 100_000]}, "prompt"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": " "}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages"),
    (CHAT, {"messages": [PICTURE_ELSEWHERE]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "max_images": 11}, "max_images"),
    (CHAT, {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools"),
    (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 5}, None),
]


@pytest.mark.parametrize(("path", "body", "param"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_told_what_and_where(client, path, body, param) -> None:
    answer = client.post(
        path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert param in error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"prompt": NaN}']
)
def test_no_body_breaks_the_server(client: TestClient, content: bytes) -> None:
    for path in (IMAGES, COMPLETIONS):
        answer = client.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
    assert client.get("/health").json()["status"] == "ok"


def test_infinite_guidance_is_refused(client: TestClient) -> None:
    for number in ("NaN", "Infinity", "1e999"):
        content = f'{{"prompt": "x", "guidance_scale": {number}}}'
        answer = client.post(IMAGES, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400


def test_models_are_listed_and_others_are_not_found(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    answer = client.post(IMAGES, json={"prompt": "x", "model": "gpt-image-1"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    missing = client.get("/v1/none")
    assert missing.status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"


def test_a_bug_is_no_story_for_the_caller(sampler: Sampler, monkeypatch) -> None:
    service = Service(sampler, EndpointConfig())
    client = TestClient(make_app(service), raise_server_exceptions=False)
    with monkeypatch.context() as patch:
        patch.setattr(service.loop.runner.engine, "_advance_images", lambda *_, **__: 1 / 0)
        answer = client.post(IMAGES, json={"prompt": "x"})
        assert answer.status_code == 500
        assert "division" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        # Also such an answer says which model it is of.
        assert answer.headers["x-model-digest"] == sampler.package.digest
        assert answer.headers["x-request-id"]
    assert client.post(IMAGES, json={"prompt": "x"}).status_code == 200


def test_an_engine_that_fails_step_after_step_is_unwell_until_one_succeeds(
    sampler: Sampler, monkeypatch
) -> None:
    service = Service(sampler, EndpointConfig())
    client = TestClient(make_app(service), raise_server_exceptions=False)

    def is_well() -> bool:
        return client.get("/health").status_code == 200

    def drawn() -> int:
        return client.post(IMAGES, json={"prompt": "x"}).status_code

    with monkeypatch.context() as patch:
        patch.setattr(service.loop.runner.engine, "_advance_images", lambda *_, **__: 1 / 0)
        for _ in range(MAX_FAILED_STEPS - 1):
            assert drawn() == 500
        assert is_well()
        assert drawn() == 500
        until(lambda: not is_well())
        told = client.get("/health").json()["error"]["message"]
        assert "3 steps of the engine have failed" in told
        with pytest.raises(RuntimeError, match="3 steps of the engine have failed"):
            service.loop.check(step_timeout_s=60.0)
    assert drawn() == 200
    assert is_well()
    service.loop.check(step_timeout_s=60.0)
    service.close()
