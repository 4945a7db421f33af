"""A world of one process."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


@contextlib.contextmanager
def one_process(backend: str = "gloo") -> Iterator[None]:
    """Joined to nobody: sharding is what it is in a run, the network is not there."""
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
