"""Places: who is under way, who waits, who is sent away, and what a caller leaves that goes."""

import asyncio
import threading

import httpx
import pytest

from tests.serve.serving import until
from transfusion.sample.params import SamplingParams
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

IMAGES, COMPLETIONS, CHAT = "/v1/images/generations", "/v1/completions", "/v1/chat/completions"


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
