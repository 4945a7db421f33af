"""A local folder of a training process's own, for files on their way to the store."""

import shutil
import tempfile
from pathlib import Path


def scratch_folder(preferred: Path) -> Path:
    """A folder of this process's own for staging, below `preferred` where this machine has it."""
    parent = preferred if preferred.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="train-", dir=parent))


def remove_scratch(folder: Path) -> None:
    """Removes a staging folder; nothing of value is in it."""
    shutil.rmtree(folder, ignore_errors=True)
