"""The numbers that a replica tells, and the dashboard that reads them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from transfusion.serve.metrics import Metrics, Tell


class Notes:
    """Instruments that write down what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float, tuple[str, ...]]] = []

    def _made(self, name: str) -> Tell:
        return lambda value, *of: self.told.append((name, value, of))

    def counter(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        return self._made(name)

    def gauge(self, name: str, about: str, labels: Sequence[str]) -> Tell:
        return self._made(name)

    def histogram(
        self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> Tell:
        return self._made(name)


def test_a_number_is_told_to_everybody_with_its_labels() -> None:
    notes = Notes()
    metrics = Metrics(notes)
    metrics.tokens(3)
    metrics.first(0.25, "text")
    assert notes.told == [
        ("transfusion_tokens", 3, ()),
        ("transfusion_time_to_first_seconds", 0.25, ("text",)),
    ]
    text = metrics.text().decode()
    assert "transfusion_tokens_total 3.0" in text
    assert 'transfusion_time_to_first_seconds_bucket{kind="text",le="0.3"} 1.0' in text


def test_the_dashboard_asks_only_for_numbers_that_are_told(repository: Path) -> None:
    metrics = Metrics()
    metrics.first(0.25, "text")
    metrics.start(1, "weights")
    told = set(re.findall(r"^(transfusion_\w+)[ {]", metrics.text().decode(), flags=re.MULTILINE))
    dashboard = json.loads((repository / "cluster" / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"transfusion_\w+", target["expr"])
    }
    assert asked <= told
    kinds = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in told}
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked}
    assert shown == kinds, "every number has its place"
