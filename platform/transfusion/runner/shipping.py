"""What travels to a cluster: the resolved job, its identity there, and the code of both packages."""

import copy
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from transfusion.artifacts.canonical import fingerprint
from transfusion.config import is_location
from transfusion.errors import SpecError
from transfusion.resources import Resources
from transfusion.spec.job import Job
from transfusion.spec.stages import PACKAGES

EXCLUDES = ["**/__pycache__", "*.pyc"]
"""Left out of what is shipped: they differ from run to run, and so would the package's hash."""


@dataclass(frozen=True, kw_only=True)
class ShippedJob:
    """A job as a cluster is given it: no overrides, no interpolations, no relative paths."""

    name: str
    """Lower-case letters, digits and dashes, starting with a letter."""
    values: dict[str, Any]
    fingerprint: str
    """Of the values: one key for what is to be done and where."""
    local_places: tuple[str, ...]
    """Store and raw input that lie on a local disk, which every machine would have to see."""

    @property
    def key(self) -> str:
        """Name and identity in one word; the same job always has the same."""
        return f"{self.name}-{self.fingerprint[:10]}"

    @property
    def yaml(self) -> str:
        """The job file that the cluster runs."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=100)


def ship(job: Job, *, until: str | None = None) -> ShippedJob:
    """Makes a job fit to be run elsewhere. Raises SpecError when `until` names no stage."""
    names = [stage.name for stage in job.stages]
    if until is not None and until not in names:
        raise SpecError(f"--until {until}: there is no such stage; there are {', '.join(names)}")
    values = copy.deepcopy(job.resolved)
    values["store"] = _absolute(job.file.store)
    local = [f"store: {values['store']}"] if _is_local(job.file.store) else []
    for stage in job.stages:
        for field, value in _locations(stage.config):
            written = values["stages"][stage.name].setdefault("config", {})
            written[field] = _absolute(value)
            if _is_local(value):
                local.append(f"stages.{stage.name}.config.{field}: {written[field]}")
    identity = values if until is None else {"job": values, "until": until}
    return ShippedJob(
        name=slug(job.name),
        values=values,
        fingerprint=fingerprint(identity),
        local_places=tuple(local),
    )


def slug(name: str) -> str:
    """A name that Kubernetes and Ray both take: `[a-z]([-a-z0-9]*[a-z0-9])?`, 30 characters at most."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"job-{plain}")[:30].strip("-")


def resources_yaml(resources: Resources) -> str:
    """The profile beside a shipped job: what stages see, without the machines."""
    shown = resources.model_dump(mode="json", include=set(Resources.model_fields))
    return yaml.safe_dump(shown, sort_keys=False)


def package_folders() -> list[str]:
    """Where the two packages lie here."""
    folders = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise SpecError(
                f"the package {name} is not installed here; run from the repository, or pip install -e ."
            )
        folders.append(str(Path(spec.submodule_search_locations[0]).resolve()))
    return folders


def _locations(config: Any) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, field in type(config).model_fields.items()
        if is_location(field) and isinstance(value := getattr(config, name), str) and value
    ]


def _is_local(place: str) -> bool:
    return "://" not in place


def _absolute(place: str) -> str:
    return str(Path(place).expanduser().resolve()) if _is_local(place) else place
