"""What a rank reads of a checkpoint: the index, and the files that hold its own parts."""

import contextlib
import itertools
import json
from pathlib import Path

import torch.distributed as dist

from tests.train.worlds import MadeUpSource, in_world, train
from transfusion.storage.local import LocalStore
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


def test_a_rank_fetches_the_files_that_hold_its_own_parts_and_no_others(tmp_path: Path) -> None:
    in_world(RANKS, stopped_and_gone_on, tmp_path)
    for rank in range(RANKS):
        fetched = json.loads((tmp_path / f"fetched-{rank}.json").read_text())
        # One file more at the most: the counts of updates lie in some rank's.
        others = set(fetched) - {".metadata", f"__{rank}_0.distcp"}
        assert len(others) <= 1, fetched
