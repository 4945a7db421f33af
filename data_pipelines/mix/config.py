"""Options of a mixture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_pipelines.mix.conditions import Filter
from transfusion.config import JSON, Config, Location, suggestion
from transfusion.errors import ArtifactError
from transfusion.sequence.layout import SequenceLayout
from transfusion.storage.store import sha256_file


class ConditionDrop(Config):
    """How often an image that has conditions loses sight of what stands before it, for guidance by each of them.

    Defaults: InstructPix2Pix (Brooks et al. 2022, arXiv:2211.09800), section 3.2.1.
    """

    instruction: float = Field(default=0.05, ge=0, le=1)
    """It sees the images alone."""

    image: float = Field(default=0.05, ge=0, le=1)
    """It sees the instruction alone, which does not see the images either."""

    both: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _at_most_always(self) -> "ConditionDrop":
        if (total := self.instruction + self.image + self.both) > 1:
            raise ValueError(f"instruction, image and both must add up to at most 1, got {total:g}")
        return self


class MixSource(Config):
    """One source: inputs by role, its weight, what of it takes part, and how much of it there is."""

    tokens: str
    """Role of the input with its tokens."""

    latents: str | None = None
    """Role of the input with its latents, made from the same listing; None for text."""

    weight: float = Field(default=1.0, gt=0)
    """Share of the positions, relative to the other sources; a caption counts to its image's source."""

    held_out_fraction: float | None = Field(default=None, ge=0, le=0.5)
    """Instead of the mixture's: a source of few documents needs a larger one."""

    filters: list[Filter] = []
    """All must hold for a document to take part; it is counted by the first that does not."""

    when_exhausted: Literal["repeat", "stop", "end", "fail"] = "repeat"
    """repeat: go through it again, each time in a new order. stop: the other sources share its weight from then
    on. end: the plan ends with that step. fail: there is no plan."""

    max_epochs: float | None = Field(default=None, gt=0)
    """When it is exhausted, unless it repeats; 1 where neither this nor `max_tokens` is given."""

    conditions: Literal["none", "earlier_images"] = "none"
    """earlier_images: all images but the last of a document are given clean and have no loss, as in edits, where
    the first image and the instruction are what the last is made from. They count as patches all the same."""

    max_tokens: int | None = Field(default=None, ge=1)
    """The same in positions: text tokens, patches and special tokens."""


class MixPhase(Config):
    """From a step on, other weights and further filters, until the next phase."""

    start_step: int = Field(ge=1)

    weights: dict[str, float] = {}
    """Of the sources that change, 0 to leave one out; the others keep their own."""

    filters: dict[str, list[Filter]] = {}
    """Of a source, beside its own. What passes is gone through in epochs of its own."""

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        for name, weight in weights.items():
            if weight < 0:
                raise ValueError(f"the weight of {name} must be 0 or more, got {weight}")
        return dict(sorted(weights.items()))


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

    condition_drop: ConditionDrop = ConditionDrop()
    """The same for images of sources that have conditions, instead of `caption_drop`."""

    held_out_fraction: float = Field(default=0.02, ge=0, le=0.5)
    """Documents kept for validation, chosen by content."""

    validation_micro_batches: int = Field(default=8, ge=0)

    shuffle_window: int = Field(default=8192, ge=1)
    """Documents that a lane shuffles at a time: more mixes better, fewer keeps reads together."""

    takedown: Location | None = None
    """A file of keys, one a line, that must not be trained on: as the documents have them, or as `source/key`."""

    deduplicate: Literal["none", "exact", "near"] = "none"
    """Which documents take part once, whatever the source: the first by name of the source and place in it.
    exact: same bytes of a pair's image, or same text and first image of other documents; near: also pairs and
    single images whose perceptual hashes differ in at most `near_bits`."""

    near_bits: int = Field(default=6, ge=0, le=8)
    """Of 64. The same picture in another size or quality is within 6; each bit more finds more that only looks
    alike."""

    decontaminate: list[str] = []
    """Roles of inputs, tokens or latents of evaluation sets: what has the same text, or an image that is the same
    or as near as `near_bits`, takes no part."""

    phases: list[MixPhase] = []
    """What changes in the course of the run, such as the last hundredth on images of high score."""

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

    @field_validator("decontaminate")
    @classmethod
    def _in_order(cls, roles: list[str]) -> list[str]:
        return sorted(set(roles))

    @field_validator("phases")
    @classmethod
    def _one_after_the_other(cls, phases: list[MixPhase]) -> list[MixPhase]:
        starts = [phase.start_step for phase in phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"each phase must begin after the one before it, got {starts}")
        if len(phases) > 15:
            raise ValueError(f"a mixture holds at most 15 phases, got {len(phases)}")
        return phases


def raw_input(config: MixConfig) -> list[JSON]:
    """The content of the takedown list, which stands for its place in the identity."""
    if config.takedown is None:
        return []
    place = Path(config.takedown).expanduser()
    if not place.is_file():
        raise ArtifactError(f"{config.takedown}: there is no such file; expected keys, one a line")
    return [sha256_file(place)]


def check(config: MixConfig, roles: Mapping[str, str]) -> list[str]:
    """Every role that is named must be an input, every input used, and every source that is named one."""
    named = [
        (f".sources.{name}.{field}", role)
        for name, source in config.sources.items()
        for field, role in (("tokens", source.tokens), ("latents", source.latents))
        if role is not None
    ]
    named += [(".decontaminate", role) for role in config.decontaminate]
    faults = [
        f"{place}: no input is named {role!r}{suggestion(role, list(roles))}"
        for place, role in named
        if role not in roles
    ]
    used = {role for _, role in named}
    faults += [
        f".sources: the input {role!r} is used by no source; take it away or name it"
        for role in roles
        if role not in used
    ]
    for name, source in config.sources.items():
        limits = [key for key in ("max_epochs", "max_tokens") if getattr(source, key) is not None]
        if source.conditions != "none" and source.latents is None:
            faults.append(
                f".sources.{name}.conditions: a source without latents has no images; name its latents"
            )
        if limits and source.when_exhausted == "repeat":
            faults.append(
                f".sources.{name}.{limits[0]}: a source that repeats has no end; "
                "set when_exhausted to stop, end or fail"
            )
    for number, phase in enumerate(config.phases):
        faults += [
            f".phases[{number}]: no source is named {name!r}{suggestion(name, list(config.sources))}"
            for name in {**phase.weights, **phase.filters}
            if name not in config.sources
        ]
        if not any(phase.weights.get(name, s.weight) for name, s in config.sources.items()):
            faults.append(f".phases[{number}].weights: at least one source must have a weight")
    return faults
