"""A local folder of a training process's own, for files on their way to the store."""

from pathlib import Path
from tempfile import TemporaryDirectory


def scratch_folder(preferred: Path) -> TemporaryDirectory[str]:
    """Is there within its `with`, below `preferred` where this machine has it; nothing of value is in it."""
    parent = preferred if preferred.is_dir() else None
    return TemporaryDirectory(prefix="train-", dir=parent, ignore_cleanup_errors=True)
