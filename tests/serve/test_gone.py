"""Callers who go away, and callers who dawdle: what they asked for is not done, and nobody else notices."""

import httpx
import pytest

from tests.serve.serving import serving, until
from tests.tiny import tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.service import Service


@pytest.fixture
def service(tmp_path) -> Service:
    slow = SamplingDefaults(solver="ddim", num_inference_steps=1000)
    sampler = Sampler(load_package(tiny_package(tmp_path, sampling=slow)))
    return Service(sampler, EndpointConfig(max_batch_size=2, max_inference_steps=1000))


def test_a_client_that_goes_in_the_middle_of_its_stream_frees_its_slot(service: Service) -> None:
    engine = service.loop.runner.engine
    body = {"prompt": "a red circle", "stream": True, "partial_images": 3}
    with serving(service) as address:
        with httpx.stream(
            "POST", f"{address}v1/images/generations", json=body, timeout=60
        ) as answer:
            assert next(answer.iter_lines()).startswith("event: image_generation.partial_image")
            assert engine.num_active == 1
        until(lambda: engine.num_active == 0)
        assert engine.counts.images == 0
        assert engine.pages.num_free == engine.pages.num_pages
        quick = {"prompt": "a", "num_inference_steps": 50}
        assert httpx.post(f"{address}v1/images/generations", json=quick, timeout=60).is_success


def test_a_slow_reader_holds_up_nobody(service: Service) -> None:
    body = {
        "prompt": "a red circle",
        "stream": True,
        "partial_images": 3,
        "num_inference_steps": 50,
    }
    with serving(service) as address:
        with httpx.stream("POST", f"{address}v1/images/generations", json=body, timeout=60) as slow:
            lines = slow.iter_lines()
            next(lines)
            quick = {"prompt": "a", "num_inference_steps": 50}
            for _ in range(3):
                assert httpx.post(
                    f"{address}v1/images/generations", json=quick, timeout=60
                ).is_success
            events = [line for line in lines if line.startswith("event: ")]
        assert events[-1] == "event: image_generation.completed"
