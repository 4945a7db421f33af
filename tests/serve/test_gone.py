"""Callers who go away, and callers who do not read: what they asked for is not done, and nobody else notices."""

import asyncio
import gc
import json
import logging
import threading
from collections.abc import Awaitable, Callable

import httpx
import pytest

from tests.serve.serving import serving, until
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

IMAGES = "/v1/images/generations"


@pytest.fixture
def service(tmp_path) -> Service:
    slow = SamplingDefaults(solver="ddim", num_inference_steps=1000)
    sampler = Sampler(load_package(tiny_package(tmp_path, sampling=slow)))
    return Service(sampler, EndpointConfig(max_batch_size=2, max_inference_steps=1000))


def test_a_client_that_goes_in_the_middle_of_its_stream_frees_its_slot(service: Service) -> None:
    engine = service.loop.runner.engine
    body = {"prompt": "a red circle", "stream": True, "partial_images": 3}
    with serving(service) as address:
        with httpx.stream("POST", f"{address}{IMAGES[1:]}", json=body, timeout=60) as answer:
            assert next(answer.iter_lines()).startswith("event: image_generation.partial_image")
            assert engine.num_active == 1
        until(lambda: engine.num_active == 0)
        assert engine.counts.images == 0
        assert engine.pages.num_free == engine.pages.num_pages
        quick = {"prompt": "a", "num_inference_steps": 50}
        assert httpx.post(f"{address}{IMAGES[1:]}", json=quick, timeout=60).is_success


def asked(spec: str, body: dict) -> tuple[dict, Callable[[], Awaitable[dict]]]:
    """A request as a server hands it on, and what comes from its caller: the body, then nothing."""
    scope = {
        "type": "http", "method": "POST", "path": IMAGES, "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "asgi": {"spec_version": spec},
    }  # fmt: skip
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> dict:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    return scope, receive


# Servers of the one kind wait for a caller's going beside what is sent, those of the other hear of it from `send`.
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("end", ["is given up", "is cancelled"])
def test_a_caller_who_stops_reading_frees_its_slot_and_is_no_bug(
    service: Service, monkeypatch, caplog, spec: str, end: str
) -> None:
    limit_s = 0.05 if end == "is given up" else 60.0
    service.config = service.config.model_copy(update={"reader_timeout_s": limit_s})
    engine, step = service.loop.runner.engine, service.loop.runner.engine.step
    blocked, go = threading.Event(), threading.Event()

    def held() -> bool:
        # Behind the first preview and before the last step.
        if engine.counts.steps >= 20:
            go.wait(60)
        return step()

    monkeypatch.setattr(engine, "step", held)

    async def send(message: dict) -> None:
        assert message.get("status", 200) == 200
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.Event().wait()

    async def scene() -> None:
        body = {"prompt": "a", "stream": True, "partial_images": 3, "num_inference_steps": 50}
        app = make_app(service)
        answering = asyncio.create_task(app(*asked(spec, body), send))
        await asyncio.to_thread(until, lambda: blocked.is_set() or answering.done())
        if end == "is cancelled":
            answering.cancel()
        await asyncio.wait_for(asyncio.wait([answering]), 20)
        assert answering.cancelled() == (end == "is cancelled")
        assert answering.cancelled() or answering.exception() is None
        # What was left open would be closed by now, each piece for itself.
        gc.collect()
        await asyncio.sleep(0)
        go.set()
        await asyncio.to_thread(until, lambda: engine.num_active == 0)

    asyncio.run(scene())
    service.close()
    assert (engine.counts.cancelled, engine.counts.images) == (1, 0)
    assert engine.pages.num_free == engine.pages.num_pages
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
    told = [one.getMessage() for one in caplog.records if "has not read" in one.getMessage()]
    assert len(told) == (end == "is given up")
