"""Curves keep what matters when they are thinned, and are drawn inside their frame."""

import io
import json
import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transfusion.report.axes import log_ticks, ticks
from transfusion.report.charts import Line, line_chart
from transfusion.report.curves import Point, read_metrics, smooth, thin
from transfusion.report.formats import file_size, lasting, number
from transfusion.report.pictures import Album, psnr_db

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


def curve(values: Sequence[float]) -> list[Point]:
    return [Point(float(step), value) for step, value in enumerate(values, 1)]


@given(VALUES, st.integers(10, 60))
def test_a_thinned_curve_is_short_and_keeps_its_ends_and_its_peaks(
    values: list[float], most: int
) -> None:
    points = curve(values)
    thinned = thin(points, most)
    assert len(thinned) <= max(most, 2)
    assert thinned == sorted(thinned)
    assert {thinned[0], thinned[-1]} == {points[0], points[-1]}
    assert max(p.value for p in thinned) == max(values)
    assert min(p.value for p in thinned) == min(values)


@given(VALUES)
def test_a_smoothed_curve_stays_within_the_values_and_at_their_steps(values: list[float]) -> None:
    smoothed = smooth(curve(values))
    assert [p.step for p in smoothed] == [p.step for p in curve(values)]
    room = 1e-9 * (1 + max(abs(value) for value in values)) * len(values)
    assert all(min(values) - room <= p.value <= max(values) + room for p in smoothed)


def test_a_straight_line_is_smoothed_to_itself_where_it_begins() -> None:
    straight = curve([2.0 * step for step in range(600)])
    for point, smoothed in zip(straight[:580], smooth(straight), strict=False):
        assert smoothed.value == pytest.approx(point.value, abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [[0.5], [0.0, 0.0], [1e-9, 1e9], [-3.0, 4.0], [1.0] * 90, [math.exp(-i / 9) for i in range(300)]],
    ids=["one", "zero", "eighteen orders", "below zero", "flat", "falling"],
)  # fmt: skip
def test_every_point_is_drawn_inside_the_frame(values: list[float]) -> None:
    drawing = line_chart(
        [
            Line(name="a", role="train", curve=curve(values)),
            Line(name="b", role="validation", curve=curve(values)),
        ],
        label="loss",
        max_points=100,
    )
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', drawing).groups())  # type: ignore[union-attr]
    paths = [path for kind, path in re.findall(r'<path class="(\w+)[^"]*" d="([^"]+)"', drawing)
             if kind in {"line", "noise"}]  # fmt: skip
    places = [place.split() for path in paths for place in re.findall(r"[\d.-]+ [\d.-]+", path)]
    assert places
    assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in places)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.12, 0.48, [0.2, 0.3, 0.4]), (0, 1250, [0, 500, 1000])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(float(low), float(high), 5) == pytest.approx(expected)


def test_ticks_of_a_logarithm_are_powers_of_ten_and_between() -> None:
    assert log_ticks(0.09, 1.5) == pytest.approx([0.1, 0.2, 0.5, 1.0])
    assert log_ticks(1e-6, 2.0) == pytest.approx([10.0**power for power in range(-6, 1)])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1250, "1,250"), (21_500.0, "21.5k"), (2_412_880, "2.41M"), (0.034, "0.034"),
     (3e-4, "3e-4"), (1.5e-5, "1.5e-5"), (-2.5, "-2.5"), (97.25, "97.2")],
)  # fmt: skip
def test_numbers_are_short(value: float, expected: str) -> None:
    assert number(value) == expected


def test_sizes_and_durations_are_told_in_their_unit() -> None:
    assert [file_size(count) for count in (812, 1_400_000)] == ["812 B", "1.4 MB"]
    assert [lasting(seconds) for seconds in (0.42, 64.0, 7500.0)] == ["0.4s", "1m04s", "2h05m"]


def test_metrics_are_read_by_kind_and_what_is_no_number_is_left_out() -> None:
    rows = [
        {"step": 1, "kind": "train", "values": {"loss": 2, "text": "x"}, "timing": {"step_s": 0.5}},
        {"step": 2, "kind": "train", "values": {"loss": math.nan}, "timing": {}},
        {"step": 2, "kind": "validation", "values": {"loss": 1.5}, "timing": {"validation_s": 3}},
    ]
    metrics = read_metrics("\n".join(json.dumps(row) for row in rows).encode())
    assert metrics.train == {"loss": [Point(1.0, 2.0)]}
    assert metrics.validation == {"loss": [Point(2.0, 1.5)]}
    assert metrics.timing == {"step_s": [Point(1.0, 0.5)]}


def test_large_images_are_scaled_down_and_small_ones_kept_as_they_are() -> None:
    def encoded(size_px: int, kind: str) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", (size_px, size_px // 2), (200, 30, 30)).save(sink, kind)
        return sink.getvalue()

    album = Album(max_images=5, max_image_px=100)
    large, small = album.add(encoded(400, "JPEG")), album.add(encoded(32, "PNG"))
    assert (large.width, large.height, large.pixelated) == (100, 50, False)
    assert (small.width, small.height, small.pixelated) == (32, 16, True)
    assert album.left == 3


def test_psnr_is_that_of_the_definition() -> None:
    def grey(level: int) -> bytes:
        sink = io.BytesIO()
        Image.new("L", (4, 4), level).save(sink, "PNG")
        return sink.getvalue()

    assert psnr_db(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr_db(grey(7), grey(7)) == 99.0
