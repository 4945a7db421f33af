"""The app does what its own OpenAPI says, for whatever schemathesis thinks of.

Longer, against a running endpoint:

    schemathesis run http://127.0.0.1:8000/openapi.json \\
        --max-examples 1000 --exclude-checks positive_data_acceptance
"""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS
from schemathesis.generation import GenerationMode
from starlette.testclient import TestClient

from tests.tiny import QUICK, tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.service import Service

OPERATIONS = [
    "/v1/chat/completions", "/v1/completions", "/v1/images/generations", "/v1/images/edits",
    "/v1/models", "/v1/models/{name}", "/tokenize", "/detokenize", "/tokenizer_info",
    "/health", "/metrics",
]  # fmt: skip
NOTHING_IS_WRONG = {"/v1/models", "/v1/models/{name}", "/tokenizer_info", "/health", "/metrics"}
"""For what they take: nothing, or any name."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    quick = SamplingDefaults(**QUICK)
    sampler = Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))
    limits = EndpointConfig(max_tokens=8, max_inference_steps=10, max_images=2)
    service = Service(sampler, limits)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def schema(client: TestClient):
    return schemathesis.openapi.from_asgi("/openapi.json", client.app)


def test_every_endpoint_is_in_the_schema(schema) -> None:
    assert {operation.ok().path for operation in schema.get_all_operations()} == set(OPERATIONS)


@pytest.mark.parametrize(
    ("path", "mode"),
    [(path, "positive") for path in OPERATIONS]
    + [(path, "negative") for path in OPERATIONS if path not in NOTHING_IS_WRONG],
)
def test_the_app_does_what_its_schema_says(
    client: TestClient, schema, path: str, mode: str
) -> None:
    (operation,) = schema[path].values()
    cases = operation.as_strategy(generation_mode=GenerationMode(mode))
    # A prompt may be well formed and too long for the model, or a model's name one that is not here.
    unlike = CHECKS.get_by_names(["positive_data_acceptance"])

    @settings(
        max_examples=15, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=cases)
    def holds(case) -> None:
        case.call_and_validate(excluded_checks=unlike)

    holds()
    assert client.get("/health").status_code == 200
