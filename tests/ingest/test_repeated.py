"""One batch again and again is the first of the plan, draws included."""

from pathlib import Path

import pytest
import torch

from tests.pipeline import make_mixture
from transfusion.ingest.reader import MixtureReader
from transfusion.train.repeated import RepeatedFirstStep


def test_every_step_is_the_first_of_the_plan_with_its_noise(tmp_path: Path) -> None:
    mixture = make_mixture(tmp_path / "store")
    first = MixtureReader(mixture, seed=3)
    repeated = RepeatedFirstStep(MixtureReader(mixture, seed=3))
    assert repeated.lanes == first.lanes == 2
    for lane in range(2):
        wanted = first.micro_batch(0, lane)
        for step in (0, 1, 5, 1000):
            found = repeated.micro_batch(step, lane)
            for name in ("token_ids", "latents", "noise", "timesteps", "text_targets"):
                assert torch.equal(getattr(found, name), getattr(wanted, name))
            assert repeated.document_ids(step, lane) == first.document_ids(0, lane)
    assert repeated.num_validation == 0
    with pytest.raises(IndexError):
        repeated.validation(0)
