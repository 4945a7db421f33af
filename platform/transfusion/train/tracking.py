"""Services that show a run while it goes, beside the rows that are always kept. None of them can hurt it."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transfusion.storage.store import Store, cache_folder
from transfusion.train.metrics import Row, Tracker

log = logging.getLogger(__name__)


def make_tracker(
    tracking: str,
    *,
    run_id: str,
    name: str,
    config: Mapping[str, Any],
    store: Store,
    folder: str,
) -> Tracker | None:
    """What `resources.tracking` asks for; None, with a warning, when it cannot be had."""
    if tracking == "none":
        return None
    if "://" in store.uri:
        # Both write files of their own, which a bucket does not take.
        home = cache_folder() / "tracking" / run_id
    else:
        home = Path(store.uri) / folder / "tracking"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if tracking == "wandb":
            return _wandb(run_id=run_id, name=name, config=config, folder=home)
        return _tensorboard(home)
    except Exception as error:
        log.warning("tracking with %s is off: %s: %s", tracking, type(error).__name__, error)
        return None


def _wandb(*, run_id: str, name: str, config: Mapping[str, Any], folder: Path) -> Tracker:
    """Sends rows to Weights & Biases; offline when no key is set."""
    import wandb

    run = wandb.init(
        project="transfusion",
        id=run_id,
        name=name,
        config=dict(config),
        dir=str(folder),
        resume="allow",
        mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
        settings=wandb.Settings(silent=True),
    )

    def track(row: Row) -> None:
        run.log(_named(row), step=row["step"])

    return Tracker(track=track, close=run.finish)


def _tensorboard(folder: Path) -> Tracker:
    """Writes rows as scalars into event files in a folder."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "the package tensorboard is not installed here: pip install 'transfusion[tensorboard]'"
        ) from error
    writer = SummaryWriter(str(folder))
    log.info("tensorboard --logdir %s", folder)

    def track(row: Row) -> None:
        for name, value in _named(row).items():
            writer.add_scalar(name, value, row["step"])

    return Tracker(track=track, close=writer.close)


def _named(row: Row) -> dict[str, float]:
    """Values and timing of a row under names such as `train/loss`."""
    return {
        f"{row['kind']}/{key}": value for key, value in {**row["values"], **row["timing"]}.items()
    }
