"""What a replica tells Prometheus at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one replica, in a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.first = Histogram(
            "transfusion_time_to_first_seconds", "From a request to its first text or image.",
            ["kind"], registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self.step = Histogram(
            "transfusion_step_seconds", "A step of the engine.", registry=registry, buckets=_SECONDS
        )
        self.rows = Histogram(
            "transfusion_step_rows",
            "Requests that a step advances.",
            registry=registry,
            buckets=_ROWS,
        )
        self.positions = Counter(
            "transfusion_positions", "Positions that passed the transformer.", registry=registry
        )
        self.tokens = Counter("transfusion_tokens", "Text tokens written.", registry=registry)
        self.images = Counter("transfusion_images", "Images drawn.", registry=registry)
        self.rejected = Counter(
            "transfusion_rejected", "Requests told to come again.", registry=registry
        )
        self.cancelled = Counter(
            "transfusion_cancelled", "Requests given up before their end.", registry=registry
        )
        self.queued = Gauge("transfusion_queued", "Requests that wait.", registry=registry)

    def stepped(self, seconds: float, *, rows: int, positions: int) -> None:
        """A step is over."""
        self.step.observe(seconds)
        self.rows.observe(rows)
        self.positions.inc(positions)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return bytes(generate_latest(self.registry))
