"""A world of one for tests in this process; a disk that fills up."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from transfusion.storage.local import LocalStore


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)
    store = dist.FileStore(str(tmp_path_factory.mktemp("world") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has no room for files whose path in the store has a part."""
    put_file = LocalStore.put_file

    def fill(part: str) -> None:
        def full(store: LocalStore, path: str, source: Path) -> None:
            if part in path:
                raise OSError(28, "No space left on device")
            put_file(store, path, source)

        monkeypatch.setattr(LocalStore, "put_file", full)

    return fill
