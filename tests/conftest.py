"""Fixtures that every room shares."""

import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
# Ray runs its workers at nice 15: beside anything else on the machine a suite would wait for them.
os.environ.setdefault("RAY_worker_niceness", "0")


@functools.cache
def use_of_ray(path: str) -> int:
    """0 for a module whose tests share the session's Ray, 1 where they start one of their own, 2 without."""
    text = (Path(__file__).parent.parent / path).read_text(encoding="utf-8")
    return 0 if "ray_cluster" in text else 1 if "mark.ray" in text else 2


class BesideRay(LoadScopeScheduling):
    """Where processes share the tests: modules stay whole, and one process has all that share a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if use_of_ray(path) else "ray"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> BesideRay:
    """pytest-xdist's hook, asked when there are several processes."""
    return BesideRay(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a Ray comes first: it takes longest. Sorting keeps the order of the rest."""
    items.sort(key=lambda item: use_of_ray(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of two CPUs for the whole test session."""
    from transfusion.runner.cluster import start_ray, stop_ray

    start_ray(num_cpus=2, log=logging.getLogger("tests"))
    yield
    stop_ray()


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For thousands of calls whose shapes other tests check: a third of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server for the session; set these variables to reach its bucket, `s3://bucket`."""
    from tests.s3 import serve_s3

    with serve_s3(tmp_path_factory.mktemp("s3")) as environment:
        yield environment
