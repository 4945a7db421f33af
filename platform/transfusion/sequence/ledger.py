"""Who comes next: positions that each stream was to have and has had, phase by phase, until it is exhausted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from transfusion.sequence.order import Stream
from transfusion.sequence.shape import Figures, Limits, Shape, limits


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Steps that have the same weights."""

    first_step: int
    weights: Sequence[float]
    """Of each stream; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of a source there is, and what happens when it is used up."""

    max_epochs: float | None = None
    """Of each of its streams; no document comes more often, or, of a fraction, than the next whole number."""
    max_positions: int | None = None
    """Of all its streams; it ends with the micro-batch in which this is reached."""
    then: Literal["stop", "end", "fail"] = "stop"
    """The others share its weight; the plan ends with the step; or `Exhausted` is raised."""


class Exhausted(Exception):  # noqa: N818 it is what happened to the source
    """A source that must not run out did, or all did."""

    def __init__(self, source: int | None, step: int) -> None:
        super().__init__(source, step)
        self.source = source
        """None when there is nothing left to plan with."""
        self.step = step


class Stretch(NamedTuple):
    """Sequences that were planned with the same weights, up to the next stretch."""

    first_sequence: int
    weights: dict[int, float]
    """Of each source that takes part; they add up to 1."""
    limits: Limits


class Ledger:
    """Weights and what was drawn. It begins anew whenever the weights change, so that no debt is carried on."""

    def __init__(
        self,
        streams: Sequence[Stream],
        shape: Shape,
        budgets: Sequence[Budget | None],
        fixed_limits: Limits | None,
    ) -> None:
        self._shape, self._fixed_limits = shape, fixed_limits
        self._sources = [stream.source for stream in streams]
        count = 1 + max(self._sources)
        self._budgets = [*budgets, *[None] * (count - len(budgets))]
        self._figures = [Figures.of(stream) for stream in streams]
        self._given: Sequence[float] = [0.0] * len(streams)
        self._weights = [0.0] * len(streams)
        self._drawn = [0] * len(streams)
        self._planned = self._sequences = 0
        self._left = [budget.max_positions if budget else None for budget in self._budgets]
        self._limits = Limits(0, 0)
        self._exhausted: set[int] = set()
        self._over: set[int] = set()
        self._stretches: list[Stretch] = []
        self._ended: dict[int, int] = {}
        self.is_outdated = True
        """Whether `weigh` must be called before the next micro-batch."""
        self.ends = False
        """Whether the plan ends with the present step."""
        self.taking_part: list[int] = []
        """Streams that have a weight."""

    def max_epochs(self, i: int) -> float | None:
        """Of a stream; None for ever."""
        budget = self._budgets[self._sources[i]]
        return budget.max_epochs if budget else None

    def begin(self, phase: Phase) -> None:
        """Goes on with other weights."""
        self._given, self.is_outdated = phase.weights, True

    def exhaust(self, i: int) -> None:
        """There is no more of a stream."""
        self._exhausted.add(i)
        self.is_outdated = True

    def next_sequence(self) -> None:
        """Another sequence is to be filled."""
        self._planned += self._shape.sequence_length
        self._sequences += 1

    def forget(self, sequences: int) -> None:
        """Takes the last sequences back, of which none was filled."""
        self._sequences -= sequences
        # Less where it began anew within them.
        self._planned = max(0, self._planned - sequences * self._shape.sequence_length)
        within = [s for s in self._stretches if s.first_sequence > self._sequences]
        if within:
            del self._stretches[-len(within) :]
            self._add(within[-1]._replace(first_sequence=self._sequences))

    def deficit(self, i: int) -> float:
        """How many positions a stream is behind."""
        return self._weights[i] * self._planned - self._drawn[i]

    def draw(self, i: int, positions: int) -> None:
        """A stream has had that many more."""
        self._drawn[i] += positions
        source = self._sources[i]
        left = self._left[source]
        if left is not None:
            self._left[source] = left - positions
            self.is_outdated |= left <= positions

    def weigh(self, step: int) -> Limits:
        """Gives the weight of what is exhausted to the same source's other streams, else to all others.

        Returns:
            What a micro-batch holds from now on.

        Raises:
            Exhausted: A source whose budget says so, or every source, is used up.
        """
        self.is_outdated = False
        shares: dict[int, float] = {}
        alive: dict[int, float] = {}
        for i, (source, weight) in enumerate(zip(self._sources, self._given, strict=True)):
            left = self._left[source]
            if left is not None and left <= 0:
                self._exhausted.add(i)
            if weight > 0:
                shares[source] = shares.get(source, 0.0) + weight
                if i not in self._exhausted:
                    alive[source] = alive.get(source, 0.0) + weight
        for source in sorted(shares.keys() - alive.keys() - self._over):
            self._end(source, step)
        if not alive and not self.ends:
            raise Exhausted(None, step)
        total = sum(shares[source] for source in alive)
        self.taking_part = [
            i for i, weight in enumerate(self._given) if weight > 0 and i not in self._exhausted
        ]
        self._weights = [0.0] * len(self._given)
        for i in self.taking_part:
            source = self._sources[i]
            self._weights[i] = self._given[i] / alive[source] * shares[source] / total
        self._drawn, self._planned = [0] * len(self._given), 0
        if not alive:
            return self._limits
        found = self._fixed_limits or limits(self._figures, self._weights, self._shape)
        weights = {source: shares[source] / total for source in sorted(alive)}
        self._add(Stretch(self._sequences, weights, found))
        self._limits = found
        return found

    def take(self) -> tuple[list[Stretch], dict[int, int]]:
        """Stretches that began, and sources that ended with the step, since the last call."""
        stretches, ended = self._stretches, self._ended
        self._stretches, self._ended = [], {}
        return stretches, ended

    def _add(self, stretch: Stretch) -> None:
        if self._stretches and self._stretches[-1].first_sequence == stretch.first_sequence:
            # No sequence was planned with the weights of that one.
            self._stretches.pop()
        self._stretches.append(stretch)

    def _end(self, source: int, step: int) -> None:
        budget = self._budgets[source]
        assert budget is not None
        if budget.then == "fail":
            raise Exhausted(source, step)
        self._over.add(source)
        self._ended[source] = step
        self.ends |= budget.then == "end"
