"""How often each shard was started and what came of it, kept apart from the processes that may die of it.

Ray runs a block again when its actor dies inside it, or when its result is lost with a machine; what is known
already is not made again. A shard that kills its process would be tried for ever, so starts are counted here.
"""

from collections.abc import Callable, Collection

from data_pipelines.shards import MAX_ATTEMPTS

MAX_NODE_LOSSES = 20
"""Starts of one shard that its node did not outlive. Spot nodes go, and no shard is to blame; but one that takes
its node down with it, or never ends before the next preemption, is not begun without end."""


def living_nodes() -> set[str]:
    """Ids of the nodes that the cluster has now."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


class ShardStarts:
    """Starts and results of the shards of one job, by key.

    A start that neither ended nor goes on was cut short: by the death of its process, or of its node when that is
    not alive any more. Only the first is held against the shard.
    """

    def __init__(self, living: Callable[[], Collection[str]] = living_nodes) -> None:
        self._living = living
        self._nodes: dict[str, list[str]] = {}
        """Where a shard was started that has not ended."""
        self._results: dict[str, str] = {}

    def known(self, key: str) -> tuple[bool, str | None]:
        """Whether a process died at this shard, and what came of it if it has ended."""
        return self._cut_short(key)[0] > 0, self._results.get(key)

    def start(self, key: str, node: str) -> str:
        """Notes a start on a node; or says why there is to be none."""
        deaths, losses = self._cut_short(key)
        if deaths >= MAX_ATTEMPTS:
            return (
                f"its process died {deaths} times, most likely out of memory: raise "
                "pool.memory_per_actor_gib or make smaller shards"
            )
        if losses >= MAX_NODE_LOSSES:
            return (
                f"its node was lost {losses} times before it had ended: make smaller shards, use nodes that "
                "live longer, or look whether it takes all memory of a node"
            )
        self._nodes.setdefault(key, []).append(node)
        return ""

    def end(self, key: str, result: str) -> None:
        """Notes what came of a shard."""
        self._nodes.pop(key, None)
        self._results[key] = result

    def _cut_short(self, key: str) -> tuple[int, int]:
        """Starts that did not end: those whose node is still there, and those that it did not outlive."""
        nodes = self._nodes.get(key)
        if not nodes:
            return 0, 0
        # Looked at anew each time: the loss of a node may be noticed after the start that follows it.
        living = self._living()
        deaths = sum(node in living for node in nodes)
        return deaths, len(nodes) - deaths
