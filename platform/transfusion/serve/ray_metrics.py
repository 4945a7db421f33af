"""A replica's numbers in Ray's own metrics, which every node of a cluster offers for all of its processes.

`/metrics` of an endpoint with several replicas answers for the one that the request came to. A Prometheus that
reads the nodes, as Ray's `prometheus.yml` sets it up, sees each replica: names begin with `ray_`.
"""

from collections.abc import Sequence

from ray.serve import metrics

from transfusion.serve.metrics import Tell


class RayInstruments:
    """Of the replica that makes them."""

    def counter(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """See `Instruments`."""
        made = metrics.Counter(name, about, tuple(labels))

        def tell(value: float, *of: str) -> None:
            # Ray refuses to count nothing.
            if value:
                made.inc(value, dict(zip(labels, of, strict=True)))

        return tell

    def gauge(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        """See `Instruments`."""
        made = metrics.Gauge(name, about, tuple(labels))
        return lambda value, *of: made.set(value, dict(zip(labels, of, strict=True)))

    def histogram(
        self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Tell:
        """See `Instruments`."""
        made = metrics.Histogram(name, about, list(bounds), tuple(labels))
        return lambda value, *of: made.observe(value, dict(zip(labels, of, strict=True)))
