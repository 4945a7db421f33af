"""How long a replica waited for its machine, from Ray's own record: a process cannot know what was before it."""

from collections.abc import Iterable
from typing import Protocol


class _Creation(Protocol):
    """What Ray's state API tells of the task that made an actor."""

    creation_time_ms: int | None


def machine_wait_s(process_began_s: float) -> float | None:
    """Seconds from when Serve asked for this replica until its process began; None without a dashboard to ask.

    There had to be room for it first, which a machine may have had to come for.

    Args:
        process_began_s: When this process began, in seconds since 1970.
    """
    import ray
    from ray.util.state import list_tasks
    from ray.util.state.exception import RayStateApiException

    here = ray.get_runtime_context()
    try:
        found: Iterable[_Creation] = list_tasks(
            address=here.gcs_address,
            filters=[("actor_id", "=", here.get_actor_id()), ("type", "=", "ACTOR_CREATION_TASK")],
            detail=True,
            timeout=10,
        )
    except (RayStateApiException, ConnectionError):
        return None
    asked = [one.creation_time_ms for one in found if one.creation_time_ms]
    return max(process_began_s - min(asked) / 1000, 0.0) if asked else None
