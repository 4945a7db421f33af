"""Starting Ray silences Ray, and nobody else."""

import logging


def test_a_log_that_the_program_listens_to_is_heard_after_ray_has_started(
    ray_cluster: None, caplog
) -> None:
    logging.getLogger("other").warning("something else")
    assert "something else" in caplog.text
    assert all(handler.level < logging.ERROR for handler in logging.root.handlers)
