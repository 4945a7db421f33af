"""What a rank reads of a checkpoint: the index, and the files that hold its own parts."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.train.outcomes import records
from tests.train.worlds import MadeUpSource, in_world, train
from transfusion.errors import ArtifactError
from transfusion.storage.local import LocalStore
from transfusion.train.checkpoints.record import FORMAT, OtherFormatError
from transfusion.train.stop import StoppedError

RANKS = 4


def stopped_and_gone_on(folder: Path) -> None:
    """For `in_world`: a run that stops with a checkpoint, and goes on; each rank leaves what it fetched."""
    source, asked = MadeUpSource(lanes=RANKS), itertools.count()
    with contextlib.suppress(StoppedError):
        train(folder, source=source, stop=lambda: next(asked) >= 1)
    fetched, local = set(), LocalStore.local

    def telling(store: LocalStore, path: str, *, fresh: bool = False) -> Path:
        if "/checkpoints/data/" in path:
            fetched.add(Path(path).name)
        return local(store, path, fresh=fresh)

    LocalStore.local = telling  # type: ignore[method-assign] a process of its own
    train(folder, source=source)
    (folder / f"fetched-{dist.get_rank()}.json").write_text(json.dumps(sorted(fetched)))


def unread_and_foreign(folder: Path) -> None:
    """For `in_world`: what one rank cannot read, and a record of another version, end all ranks alike."""
    source, asked = MadeUpSource(lanes=2), itertools.count()
    with contextlib.suppress(StoppedError):
        train(folder, source=source, stop=lambda: next(asked) >= 1)
    dist.barrier()  # rank 0 commits last
    (record,) = records(folder)
    local = LocalStore.local

    def failing(store: LocalStore, path: str, *, fresh: bool = False) -> Path:
        if dist.get_rank() == 1 and path.endswith(".distcp"):
            raise OSError(28, "No space left on device")
        return local(store, path, fresh=fresh)

    LocalStore.local = failing  # type: ignore[method-assign]
    with pytest.raises(ArtifactError, match=r"rank 1 cannot read a checkpoint: .*No space"):
        train(folder, source=source)
    LocalStore.local = local  # type: ignore[method-assign]
    assert record.exists(), "what cannot be read is not refused"
    dist.barrier()
    if dist.get_rank() == 0:
        text = record.read_text()
        record.write_text(
            text.replace(FORMAT, "transfusion.checkpoint/9").replace("{", '{"new": 1,', 1)
        )
    dist.barrier()
    with pytest.raises(OtherFormatError, match=r"is of format transfusion.checkpoint/9"):
        train(folder, source=source)
    assert record.exists()


def test_what_one_rank_cannot_read_ends_all_and_refuses_nothing(tmp_path: Path) -> None:
    in_world(2, unread_and_foreign, tmp_path, timeout_s=60)


def test_a_rank_fetches_the_files_that_hold_its_own_parts_and_no_others(tmp_path: Path) -> None:
    in_world(RANKS, stopped_and_gone_on, tmp_path)
    for rank in range(RANKS):
        fetched = json.loads((tmp_path / f"fetched-{rank}.json").read_text())
        # One file more at the most: the counts of updates lie in some rank's.
        others = set(fetched) - {".metadata", f"__{rank}_0.distcp"}
        assert len(others) <= 1, fetched
