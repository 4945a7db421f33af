"""What was measured of every step is drawn: nothing is left out, and parts of a step add up."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfusion.report.areas import area_chart, means, stretches
from transfusion.report.axes import BOTTOM, HEIGHT, TOP, WIDTH
from transfusion.report.charts import Line
from transfusion.report.curves import Metrics, Point
from transfusion.report.figures import FAMILIES, measured_charts, speed_charts, step_parts
from transfusion.train.measures import GROUPS, NUM_LEVELS, measured


def test_whatever_training_measures_is_in_a_chart() -> None:
    sums = {f"error_t{level}": 1.0 for level in range(NUM_LEVELS)}
    sums |= {f"images_t{level}": 1.0 for level in range(NUM_LEVELS)}
    sums |= {f"grad_{group}": 1.0 for group in GROUPS} | {"text_size": 1.0, "image_size": 1.0}
    written = measured(sums, {"text_tokens": 1.0, "images": 1.0})
    drawn = {name for members in FAMILIES.values() for name in members}
    alone = [Point(1.0, written["grad_norm"])]
    (norm,) = measured_charts(Metrics({"grad_norm": alone}, {}, {}), 100)
    assert norm.title == "Gradient norm, before clipping"
    # How many images a level had is what its loss is divided by.
    assert {name for name in written if not name.startswith("images_t")} == drawn | {"grad_norm"}


def test_a_chart_names_its_lines_and_what_was_not_measured_has_none() -> None:
    train = {"stream_rms_text": [Point(1.0, 2.0), Point(2.0, 3.0)], "lr": [Point(1.0, 0.1)]}
    stream, rate = measured_charts(Metrics(train, {}, {}), 100)
    assert stream.title == "Stream behind the last block, RMS"
    assert stream.legend == [("c0", "at text")]
    assert rate.title == "Learning rate"


def test_speed_is_shown_in_the_units_of_its_titles() -> None:
    timing = {"mfu": [Point(1.0, 0.43)], "peak_memory_bytes": [Point(1.0, 3.0 * 2**30)]}
    mfu, memory = speed_charts(Metrics({}, {}, timing), 100)
    assert mfu.title.startswith("MFU, %")
    assert "mfu 43" in mfu.svg
    assert memory.title.endswith("GiB")
    assert "peak_memory_bytes 3" in memory.svg


def test_parts_of_a_step_are_all_that_is_timed_but_the_whole() -> None:
    names = ("step_s", "data_s", "forward_s", "checkpoint_s", "tokens_per_s", "mfu")
    timing = {name: [Point(1.0, 1.0)] for name in names}
    assert list(step_parts(Metrics({}, {}, timing))) == ["data", "forward", "checkpoint"]


def test_what_is_done_once_in_a_stretch_counts_with_its_mean() -> None:
    steps = range(1, 121)
    curve = [Point(float(step), 10.0 if step % 40 == 0 else 0.0) for step in steps]
    edges = [1.0, 41.0, 81.0, 121.0]
    assert means(curve, edges) == pytest.approx([0.25] * 3)
    assert means(curve[:40], edges) == pytest.approx([0.25, 0.0, 0.0])


@given(st.integers(0, 10**6), st.integers(0, 10**5))
def test_stretches_cover_every_step_once(first: int, further: int) -> None:
    edges = stretches(float(first), float(first + further))
    assert edges[0] == first
    assert edges[-1] == first + further + 1
    assert 1 <= len(edges) - 1 <= 60
    assert all(end - begin >= 1 - 1e-6 for begin, end in pairwise(edges))


def test_areas_lie_on_each_other_inside_the_frame() -> None:
    low = Line(name="a", role="c0", curve=[Point(float(step), 1.0) for step in range(1, 101)])
    top = Line(name="b", role="c1", curve=[Point(float(step), 2.0) for step in range(1, 101)])
    drawing = area_chart([low, top], label="parts")
    places = [
        [tuple(map(float, place)) for place in re.findall(r"([\d.]+) ([\d.]+)", path)]
        for path in re.findall(r'<path class="area c\d" d="([^"]+)"', drawing)
    ]
    floor = HEIGHT - BOTTOM
    heights = [(max(y for _, y in part), min(y for _, y in part)) for part in places]
    assert heights[0][0] == floor
    assert heights[1][0] == heights[0][1]
    # The second is twice the first.
    assert heights[1][0] - heights[1][1] == pytest.approx(
        2 * (heights[0][0] - heights[0][1]), abs=0.2
    )
    assert all(0 <= x <= WIDTH and TOP <= y <= floor for part in places for x, y in part)
    assert "together 3" in drawing


def test_a_first_step_that_took_a_minute_does_not_flatten_the_others() -> None:
    curve = [Point(float(step), 60_000.0 if step == 1 else 100.0) for step in range(1, 1001)]
    drawing = area_chart([Line(name="forward", role="c0", curve=curve)], label="parts")
    (path,) = re.findall(r'<path class="area c0" d="([^"]+)"', drawing)
    heights = sorted(float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path))
    usual = heights[len(heights) // 2 - 1]
    assert usual < TOP + 0.1 * (HEIGHT - BOTTOM - TOP)
