"""A drawn world, as an evaluation knows it: what to ask for, and how to judge what comes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from transfusion.evaluate.captions import Described
from transfusion.evaluate.config import EvaluateConfig


@runtime_checkable
class Asked(Protocol):
    """What is asked of a model."""

    @property
    def text(self) -> str:
        """The prompt."""


P = TypeVar("P", bound=Asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What was found, for each thing judged and in all."""

    records: list[dict[str, Any]]
    """For a person and for the report: `correct` and `reason`, and what else there is to say."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class World(Generic[P]):
    """The judges of one drawn world."""

    make_prompts: Callable[[EvaluateConfig], list[P]]

    judge_drawings: Callable[[Sequence[P], Sequence[np.ndarray]], Judgement]
    """Of pictures that were drawn from prompts."""

    judge_captions: Callable[[Sequence[Described]], Judgement]
    """Of descriptions, by the image's own caption."""

    knows: Callable[[Mapping[str, Any]], bool]
    """Whether an image's metadata tells what it shows."""

    ceiling: Callable[[str, Sequence[Mapping[str, Any]], Sequence[np.ndarray]], dict[str, float]]
    """Metrics of images of known scenes, under a name: the same reader on what is as good as it gets."""
