"""Mistakes a person can mend: shown without a traceback, with place, value, rule and remedy.

Anything else that is raised is a bug of ours and keeps its traceback.
"""

from collections.abc import Sequence


class TransfusionError(Exception):
    """A fault whose message alone tells the user what to do."""

    exit_code = 1


class SpecError(TransfusionError):
    """One or more mistakes in a job file, a profile or an override; all of them at once."""

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ArtifactError(TransfusionError):
    """An artifact, a store or raw input that is missing, short, altered or of the wrong kind."""


class StoreUnavailableError(ArtifactError):
    """A store that did not answer for as long as one waits: the same may go well later."""


class StoreRefusedError(ArtifactError):
    """A store that takes no request of this kind from us: the next object would be refused too."""
