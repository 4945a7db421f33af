"""Fixtures that every room shares."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Ray runs its workers at nice 15: beside anything else on the machine a suite would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where processes share the tests: one has all that use a Ray, and begins with them; modules stay whole."""
    for item in items:
        group = "ray" if _uses_ray(item) else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    # Sorting keeps the order of what is alike.
    items.sort(key=lambda item: not _uses_ray(item))


def _uses_ray(item: pytest.Item) -> bool:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return "ray_cluster" in fixtures or item.get_closest_marker("ray") is not None


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of two CPUs for the whole test session."""
    from transfusion.runner.cluster import start_ray, stop_ray

    start_ray(num_cpus=2, log=logging.getLogger("tests"))
    yield
    stop_ray()


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server for the session; set these variables to reach its bucket, `s3://bucket`."""
    from tests.s3 import serve_s3

    with serve_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment
