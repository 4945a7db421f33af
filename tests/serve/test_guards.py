"""What stands before the endpoints: keys, and bodies that are too long or too slow."""

import asyncio

import pytest
from starlette.testclient import TestClient

from transfusion.errors import SpecError
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.guards import KEYS, Guard, key_digests
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

IMAGES = "/v1/images/generations"


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
