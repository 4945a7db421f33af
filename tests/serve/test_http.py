"""The endpoints in this process: what they answer, and how they refuse."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.serving import until
from tests.tiny import tiny_package
from transfusion.errors import SpecError
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError
from transfusion.serve.guards import KEYS, Guard, key_digests
from transfusion.serve.http import make_app
from transfusion.serve.loop import MAX_FAILED_STEPS
from transfusion.serve.service import Service

IMAGES, COMPLETIONS, CHAT = "/v1/images/generations", "/v1/completions", "/v1/chat/completions"
PICTURE_ELSEWHERE = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}],
}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    return Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))


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


def test_keys_are_asked_for_where_there_are_keys(sampler: Sampler, monkeypatch) -> None:
    monkeypatch.setenv("TRANSFUSION_API_KEYS", "one, two")
    digests = key_digests()
    assert not any("one" in digest for digest in digests)
    client = TestClient(make_app(Service(sampler, EndpointConfig()), digests=digests))
    for header, status in [
        ({}, 401),
        ({"Authorization": "Bearer three"}, 401),
        ({"Authorization": "one"}, 401),
        ({"Authorization": "Bearer one"}, 200),
        ({"Authorization": "bearer two"}, 200),
    ]:
        assert client.get("/v1/models", headers=header).status_code == status
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("value", ["", ",", "  ", " , \n", "canary one", "one,canary\ntwo"])
def test_a_variable_that_is_set_and_holds_no_key_opens_no_server(monkeypatch, value) -> None:
    monkeypatch.setenv(KEYS, value)
    with pytest.raises(SpecError, match=r"TRANSFUSION_API_KEYS: must .*unset") as refused:
        key_digests()
    assert "canary" not in str(refused.value)


def test_keys_may_have_blanks_around_them_and_without_the_variable_there_are_none(
    monkeypatch,
) -> None:
    monkeypatch.setenv(KEYS, "one")
    (digest,) = key_digests()
    monkeypatch.setenv(KEYS, " one\n,")
    assert key_digests() == (digest,)
    monkeypatch.delenv(KEYS)
    assert key_digests() == ()


def run_guarded(messages, *, headers=(), max_body_bytes=100, body_timeout_s=5.0):
    """Sends messages through the guard to an app that reads all of them; what was read and what was answered."""
    read, answered = [], []

    async def app(scope, receive, send):
        try:
            while True:
                message = await receive()
                read.append(message["body"])
                if not message["more_body"]:
                    break
        except Exception:
            read.append("refused")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": messages.pop(0), "more_body": bool(messages)}

    async def endless():
        return {"type": "http.request", "body": messages[0], "more_body": True}

    async def send(message):
        answered.append(message)

    scope = {"type": "http", "path": IMAGES, "headers": list(headers), "method": "POST"}
    guard = Guard(
        app, max_body_bytes=max_body_bytes, body_timeout_s=body_timeout_s, reader_timeout_s=60.0
    )
    stream = endless if len(messages) == 1 else receive
    asyncio.run(guard(scope, stream, send))
    return read, answered[0]["status"]


def test_a_long_body_is_refused_by_its_length_alone() -> None:
    read, status = run_guarded([b"x", b"x"], headers=[(b"content-length", b"101")])
    assert (read, status) == ([], 413)


def test_a_body_without_length_is_refused_before_it_is_read_whole() -> None:
    read, status = run_guarded([b"x" * 40])
    assert status == 413
    assert len(read) == 3  # two parts of 40, then the refusal


def test_a_body_that_dawdles_is_given_up() -> None:
    async def app(scope, receive, send):
        try:
            await receive()
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})

    async def never():
        await asyncio.sleep(60)

    answered = []

    async def send(message):
        answered.append(message)

    scope = {"type": "http", "path": IMAGES, "headers": [], "method": "POST"}
    asyncio.run(
        Guard(app, max_body_bytes=10, body_timeout_s=0.05, reader_timeout_s=60.0)(
            scope, never, send
        )
    )
    assert answered[0]["status"] == 408


def slowed(
    service: Service, monkeypatch: pytest.MonkeyPatch, pause_s: float = 0.05
) -> threading.Event:
    """The engine pauses after every step, until the event is set."""
    go, step = threading.Event(), service.loop.runner.engine.step

    def slow() -> bool:
        worked = step()
        if worked and not go.is_set():
            go.wait(pause_s)
        return worked

    monkeypatch.setattr(service.loop.runner.engine, "step", slow)
    return go


def image_request(sampler: Sampler, steps: int = 10):
    from transfusion.sample.params import SamplingParams

    params = SamplingParams(solver="dpm++", num_inference_steps=steps, modalities=("image",))
    return sampler.request("blue", params)


async def under_way(service: Service, num_active: int = 1, num_waiting: int = 0) -> None:
    """Until so many requests have a place in the engine, and so many wait."""
    engine, wanted = service.loop.runner.engine, (num_active, num_waiting)
    await asyncio.to_thread(until, lambda: (engine.num_active, engine.num_waiting) == wanted)


def test_one_that_comes_later_joins_those_under_way_and_leaves_before_them(
    sampler: Sampler, monkeypatch
) -> None:
    service = Service(sampler, EndpointConfig())
    slowed(service, monkeypatch)

    async def scenario() -> None:
        long = asyncio.create_task(service.ask([image_request(sampler, steps=40)]))
        await under_way(service)
        (short,) = await service.ask([image_request(sampler)])
        assert not long.done()
        assert short.images[0].shape == (16, 16, 3)
        await long

    asyncio.run(asyncio.wait_for(scenario(), 60))
    counts = service.loop.runner.engine.counts
    assert counts.steps < 50 < counts.rows + 10
    service.close()


def test_a_full_queue_says_come_again_and_a_quitter_frees_it(sampler: Sampler, monkeypatch) -> None:
    service = Service(sampler, EndpointConfig(max_batch_size=1, max_queued_samples=2))
    go = slowed(service, monkeypatch)

    async def scenario() -> None:
        request = image_request(sampler)
        tasks = [asyncio.create_task(service.ask([image_request(sampler, steps=250)]))]
        await under_way(service)
        transport = httpx.ASGITransport(app=make_app(service))
        client = httpx.AsyncClient(transport=transport, base_url="http://here")
        monkeypatch.setattr(service.decoder, "aside", None)  # where requests are made ready

        async def is_refused(path: str, prompt: str | list[str]) -> None:
            answer = await client.post(path, json={"prompt": prompt})
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0

        tasks.append(asyncio.create_task(service.ask([request])))
        await under_way(service, num_waiting=1)
        await is_refused(COMPLETIONS, ["one", "two, for which there is no room"])
        tasks.append(asyncio.create_task(service.ask([request])))
        await under_way(service, num_waiting=2)
        with pytest.raises(ApiError) as refused:
            await service.ask([request])
        assert refused.value.status == 429
        for path in (IMAGES, COMPLETIONS, CHAT):
            await is_refused(path, "x")
        # Nothing of it is read, so nothing is known to be wrong with it.
        assert (await client.post(IMAGES, content=b"no json")).status_code == 429
        assert (await client.get("/health")).status_code == 200
        await client.aclose()
        for task in tasks:
            task.cancel()
        await under_way(service, num_active=0)
        engine = service.loop.runner.engine
        assert engine.pages.num_free == engine.pages.num_pages
        go.set()
        assert len(await service.ask([request])) == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert service.loop.runner.engine.counts.images == 1
    service.close()


def test_callers_who_come_at_once_have_the_engines_places_and_the_queues(
    sampler: Sampler, monkeypatch
) -> None:
    """Also before the engine has taken a step: who has a place in it does not wait."""
    service = Service(sampler, EndpointConfig(max_batch_size=2, max_queued_samples=3))
    go = slowed(service, monkeypatch, pause_s=20)

    async def scenario() -> list[object]:
        request = image_request(sampler)
        tasks = [asyncio.create_task(service.ask([request])) for _ in range(7)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(asyncio.wait_for(scenario(), 60))
    service.close()
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refused) == 2
    assert all(isinstance(error, ApiError) and "busy" in str(error) for error in refused)


def test_a_request_that_takes_too_long_is_given_up_and_one_too_many_is_sent_away(
    sampler: Sampler, monkeypatch
) -> None:
    service = Service(sampler, EndpointConfig(max_queued_samples=1, max_batch_size=1))
    go = slowed(service, monkeypatch, pause_s=0.1)

    async def scenario() -> None:
        request = image_request(sampler, steps=250)
        first = asyncio.create_task(service.ask([request]))
        await under_way(service)
        second = asyncio.create_task(service.ask([request]))
        await under_way(service, num_waiting=1)
        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            refused = await client.post(IMAGES, json={"prompt": "x"})
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) > 0
            second.cancel()
            await under_way(service)
            # The first has the only place for as long as this one waits.
            headers = {"x-timeout-seconds": "0.2"}
            late = await client.post(IMAGES, json={"prompt": "x"}, headers=headers)
            assert late.status_code == 408
            assert (await client.get("/health")).status_code == 200
        first.cancel()
        go.set()
        await under_way(service, num_active=0)

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert service.loop.runner.engine.counts.images == 0
    service.close()


def test_the_block_of_a_job_listens_on_loopback_unless_told_otherwise() -> None:
    assert EndpointConfig().host == "127.0.0.1"


def test_reading_the_block_loads_neither_torch_nor_ray(repository: Path) -> None:
    import subprocess
    import sys

    code = "import sys, transfusion.serve.config; print({'torch', 'ray', 'fastapi'} & set(sys.modules))"
    paths = [str(repository / "platform"), str(repository)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
