"""What a replica tells of itself: in Prometheus' format at its own `/metrics`, and to whatever else is given."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Tell = Callable[..., None]
"""`tell(value, *labels)`: counts up, observes or sets."""

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@runtime_checkable
class Instruments(Protocol):
    """Makes numbers that something reads. Labels are given in the order of their names."""

    def counter(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """A number that grows."""

    def gauge(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """A number that is set."""

    def histogram(
        self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Tell:
        """Numbers, counted by their size."""


class PrometheusInstruments:
    """In a registry of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """See `Instruments`."""
        made = Counter(name, about, labels, registry=self.registry)
        return lambda value, *of: (made.labels(*of) if of else made).inc(value)

    def gauge(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """See `Instruments`."""
        made = Gauge(name, about, labels, registry=self.registry)
        return lambda value, *of: (made.labels(*of) if of else made).set(value)

    def histogram(
        self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Tell:
        """See `Instruments`."""
        made = Histogram(name, about, labels, registry=self.registry, buckets=bounds)
        return lambda value, *of: (made.labels(*of) if of else made).observe(value)


class Metrics:
    """Of one replica, whatever model it serves."""

    def __init__(self, *further: Instruments) -> None:
        """Makes every number.

        Args:
            further: Told of everything beside `/metrics`.
        """
        self._here = PrometheusInstruments()
        self._all = (self._here, *further)
        self.queue = self._histogram(
            "transfusion_queue_seconds", "From a request to the step that it joins.", SECONDS
        )
        self.first = self._histogram(
            "transfusion_time_to_first_seconds",
            "From a request to its first text or image.",
            SECONDS,
            "kind",
        )
        self.step = self._histogram("transfusion_step_seconds", "A step of the engine.", SECONDS)
        self.rows = self._histogram("transfusion_step_rows", "Requests that a step advances.", ROWS)
        self.max_rows = self._gauge("transfusion_max_rows", "Requests that a step can advance.")
        self.queued = self._gauge("transfusion_queued", "Requests that wait.")
        self.start = self._gauge(
            "transfusion_start_seconds", "Of the last model's start, by part.", "part"
        )
        self.positions = self._counter(
            "transfusion_positions", "Positions that passed the transformer."
        )
        self.tokens = self._counter("transfusion_tokens", "Text tokens written.")
        self.images = self._counter("transfusion_images", "Images drawn.")
        self.rejected = self._counter("transfusion_rejected", "Requests told to come again.")
        self.cancelled = self._counter(
            "transfusion_cancelled", "Requests given up before their end."
        )

    def text(self) -> bytes:
        """In Prometheus' format."""
        return bytes(generate_latest(self._here.registry))

    def _counter(self, name: str, about: str, *labels: str) -> Tell:
        return _each([one.counter(name, about, labels) for one in self._all])

    def _gauge(self, name: str, about: str, *labels: str) -> Tell:
        return _each([one.gauge(name, about, labels) for one in self._all])

    def _histogram(self, name: str, about: str, bounds: Sequence[float], *labels: str) -> Tell:
        return _each([one.histogram(name, about, labels, bounds) for one in self._all])


def _each(tells: Sequence[Tell]) -> Tell:
    def tell(value: int | float, *of: str) -> None:
        for one in tells:
            one(value, *of)

    return tell
