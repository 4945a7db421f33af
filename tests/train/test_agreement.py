"""What ranks learn from the first of them."""

import time

import pytest
import torch.distributed as dist

from tests.train.worlds import in_world
from transfusion.errors import ArtifactError
from transfusion.train import agreement
from transfusion.train.agreement import first_alone


def slow_work(folder):
    """Rank 0 works for longer than a message may take."""
    agreement.WAIT_S = 0.2
    made = first_alone(lambda: time.sleep(4) or "made")
    (folder / f"rank-{dist.get_rank()}.txt").write_text(str(made))

    def fail():
        time.sleep(0.5)
        raise ArtifactError("the bucket is gone")

    with pytest.raises(ArtifactError, match="the bucket is gone"):
        first_alone(fail)


def test_ranks_wait_for_the_first_for_longer_than_a_message_may_take(tmp_path):
    in_world(2, slow_work, tmp_path, timeout_s=2.0)
    assert (tmp_path / "rank-0.txt").read_text() == "made"
    assert (tmp_path / "rank-1.txt").read_text() == "None"
