"""Replicas die and models change while callers ask: nothing is lost and nothing mixed up."""

from pathlib import Path

import pytest

from tests.chaos_serve import rounds


@pytest.mark.ray
@pytest.mark.slow
def test_every_answer_is_right_while_a_replica_is_killed_and_the_model_is_exchanged(
    ray_cluster: None, tmp_path: Path
) -> None:
    tally, digests = rounds(tmp_path, requests=60, kills=1, swaps=1, callers=4, seed=0)
    assert not tally.wrong
    assert tally.num_answers >= 60
    assert set(tally.answers) == set(digests), "both models answered"
    assert len(tally.failures) <= 4, "only what was under way on the replica that died"
