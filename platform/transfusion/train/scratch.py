"""A local folder of a training process's own, for files on their way to the store."""

from pathlib import Path
from tempfile import TemporaryDirectory


def scratch_folder(preferred: Path) -> TemporaryDirectory[str]:
    """A temporary folder, below `preferred` where that exists here; gone when its `with` ends."""
    parent = preferred if preferred.is_dir() else None
    return TemporaryDirectory(prefix="train-", dir=parent, ignore_cleanup_errors=True)
