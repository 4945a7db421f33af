"""Options of a mixture."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, field_validator

from transfusion.config import JSON, Config, Location, suggestion
from transfusion.errors import ArtifactError
from transfusion.sequence.layout import SequenceLayout
from transfusion.storage.store import sha256_file


class MixSource(Config):
    """One source: inputs by role, and its weight."""

    tokens: str
    """Role of the input with its tokens."""

    latents: str | None = None
    """Role of the input with its latents, made from the same listing; None for text."""

    weight: float = Field(default=1.0, gt=0)
    """Share of the positions, relative to the other sources; a caption counts to its image's source."""

    held_out_fraction: float | None = Field(default=None, ge=0, le=0.5)
    """Instead of the mixture's: a source of few documents needs a larger one."""


class MixConfig(Config):
    """The plan of a run."""

    sources: dict[str, MixSource]

    sequence_length: int = Field(ge=16, lt=2**20)

    sequences_per_micro_batch: int = Field(ge=1)

    lanes: int = Field(ge=1)
    """Micro-batches of a step, whatever the number of workers; as many workers as this can share the work."""

    num_steps: int = Field(ge=1)
    """More steps extend the plan and leave the earlier ones as they were."""

    seed: int = Field(ge=0)

    layout: SequenceLayout = SequenceLayout()

    caption_first: float = Field(default=0.8, ge=0, le=1)
    """How often the caption of a pair stands before the image; otherwise it stands behind."""

    caption_drop: float = Field(default=0.1, ge=0, le=1)
    """How often an image does not see what stands before it, for guidance."""

    held_out_fraction: float = Field(default=0.02, ge=0, le=0.5)
    """Documents kept for validation, chosen by content."""

    validation_micro_batches: int = Field(default=8, ge=0)

    shuffle_window: int = Field(default=8192, ge=1)
    """Documents that a lane shuffles at a time: more mixes better, fewer keeps reads together."""

    takedown: Location | None = None
    """A file of keys, one a line, that must not be trained on."""

    @field_validator("sources")
    @classmethod
    def _some(cls, sources: dict[str, MixSource]) -> dict[str, MixSource]:
        if not sources:
            raise ValueError(
                "a mixture needs at least one source, such as {prose: {tokens: tokens}}"
            )
        if len(sources) > 100:
            raise ValueError(f"a mixture holds at most 100 sources, got {len(sources)}")
        # By name, as canonical JSON has them: shards are numbered in this order, and a job that lists its
        # sources in another order is the same job.
        return dict(sorted(sources.items()))


def raw_input(config: MixConfig) -> list[JSON]:
    """The content of the takedown list, which stands for its place in the identity."""
    if config.takedown is None:
        return []
    place = Path(config.takedown).expanduser()
    if not place.is_file():
        raise ArtifactError(f"{config.takedown}: there is no such file; expected keys, one a line")
    return [sha256_file(place)]


def check(config: MixConfig, roles: Mapping[str, str]) -> list[str]:
    """Every role that a source names must be an input, and every input must be used."""
    faults = []
    used = set()
    for name, source in config.sources.items():
        for field, role in (("tokens", source.tokens), ("latents", source.latents)):
            used.add(role)
            if role is not None and role not in roles:
                hint = suggestion(role, list(roles))
                faults.append(f".sources.{name}.{field}: no input is named {role!r}{hint}")
    faults += [
        f".sources: the input {role!r} is used by no source; take it away or name it"
        for role in roles
        if role not in used
    ]
    return faults
