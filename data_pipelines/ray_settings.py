"""Settings of Ray Data that matter, on purpose rather than by default."""

from typing import Any


def set_on_purpose(settings: Any) -> None:
    """Sets those of a `ray.data.DataContext` that every job here needs."""
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.enable_auto_log_stats = False
    # Results say what they are of: none waits for one that was begun before it.
    settings.execution_options.preserve_order = False
    # A dropped block would be a dropped shard.
    settings.max_errored_blocks = 0
    # Half an hour without a result is no fault: a large shard, or a wait for GPU nodes.
    settings.execution_no_progress_timeout_s = -1
