"""A tiny model that is quick to sample from."""

import pytest

from tests.tiny import QUICK, tiny_package
from transfusion.package.config import SamplingDefaults
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    quick = SamplingDefaults(**QUICK)
    return Sampler(load_package(tiny_package(tmp_path_factory.mktemp("tiny"), sampling=quick)))
