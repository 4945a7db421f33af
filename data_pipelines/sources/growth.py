"""What became of a place since it was listed before: new, changed and vanished files, by name.

A listing says which files there are now. That a tar is gone leaves no trace in what is made of it, so it is told
here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from transfusion.artifacts.manifest import Manifest
from transfusion.config import Config, is_location
from transfusion.errors import ArtifactError

if TYPE_CHECKING:
    from data_pipelines.sources.source import ShardDescriptor
    from transfusion.storage.store import Store

_MOST_NAMES = 8


def growth(
    shards: Sequence["ShardDescriptor"], config: Config, *, uses: str, store: "Store"
) -> str | None:
    """Such as `1 new, 1 gone since the last listing: new 00101.tar; gone 00042.tar`.

    None where this source was never listed at this place, or has no files.
    """
    from data_pipelines.sources.source import open_listing
    from transfusion.artifacts.artifact import Artifact

    manifest = _last(store, uses, config)
    if manifest is None:
        return None
    try:
        listed = open_listing(Artifact(store=store, manifest=manifest)).shards
    except ArtifactError:
        return None  # it is not needed any more, and was deleted or altered
    before, now = _files(listed), _files(shards)
    return told(before, now) if before and now else None


def told(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The differences between two listings: what is known of each file, by key."""
    found = {
        "new": [key for key in now if key not in before],
        "changed": [key for key in now if before.get(key, now[key]) != now[key]],
        "gone": [key for key in before if key not in now],
    }
    if not any(found.values()):
        return "the same files as in the last listing"
    counts = ", ".join(f"{len(keys):,} {what}" for what, keys in found.items() if keys)
    names = "; ".join(f"{what} {_names(keys)}" for what, keys in found.items() if keys)
    return f"{counts} since the last listing: {names}"


def _names(keys: Sequence[str]) -> str:
    more = len(keys) - _MOST_NAMES
    return ", ".join(keys[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _files(shards: Iterable["ShardDescriptor"]) -> dict[str, Any]:
    """What is listed of each file: of shards that are a file, or a group of files."""
    found: dict[str, Any] = {}
    for shard in shards:
        for file in shard.spec.get("rows", (shard.spec,)):
            key = file.get("path", file.get("key"))
            if isinstance(key, str):
                found[key] = file
    return found


def _last(store: "Store", uses: str, config: Config) -> Manifest | None:
    """The listing made last: by the clocks of those who made them, which is good enough to tell people."""
    places, found = _places(config, config.resolved()), []
    for path in store.children(uses):
        try:
            manifest = Manifest.model_validate_json(store.read(f"{path}/manifest.json"))
        except (ArtifactError, ValidationError):
            continue  # no listing, or one by another version of the platform: nothing to compare with
        if _places(config, manifest.config) == places:
            found.append(manifest)
    return max(
        found, key=lambda manifest: str(manifest.provenance.get("created", "")), default=None
    )


def _places(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    fields = type(config).model_fields
    return {name: values.get(name) for name, field in fields.items() if is_location(field)}
