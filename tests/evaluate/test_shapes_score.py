"""Prompts, verdicts and metrics of the drawn world."""

import pytest

from data_pipelines.sources.shapes import SceneWeights, ShapesConfig, describe
from transfusion.evaluate.shapes import words
from transfusion.evaluate.shapes.detector import PALETTE, Object
from transfusion.evaluate.shapes.prompts import TASKS, Include, Prompt, make_prompts
from transfusion.evaluate.shapes.score import (
    CaptionVerdict,
    Verdict,
    caption_metrics,
    image_metrics,
    score,
    score_caption,
)


def _at(look, x=16, y=16, area=100) -> Object:
    color, shape = look.split()
    return Object(color=color, shape=shape, x=float(x), y=float(y), area=float(area))  # type: ignore[arg-type]


RED_CIRCLE = Prompt("single_object", "a red circle", (Include("red", "circle"),))
TWO_GREEN = Prompt("counting", "two green squares", (Include("green", "square", 2),))
LEFT = Prompt(
    "position",
    "a red circle left of a blue square",
    (Include("red", "circle"), Include("blue", "square")),
    "left of",
)
BOTH = Prompt(
    "color_attribution",
    "a red circle and a blue square",
    (Include("red", "circle"), Include("blue", "square")),
)


@pytest.mark.parametrize(
    ("prompt", "seen", "expected"),
    [
        # correct, colour, shape, count, position
        (RED_CIRCLE, [_at("red circle")], "11111"),
        (RED_CIRCLE, [_at("red square")], "01011"),
        (RED_CIRCLE, [_at("blue circle")], "00111"),
        (RED_CIRCLE, [], "00001"),
        (RED_CIRCLE, [_at("red circle"), _at("blue square", area=12)], "01101"),
        (RED_CIRCLE, [_at("red unknown")], "01011"),
        (TWO_GREEN, [_at("green square"), _at("green square", 5)], "11111"),
        (TWO_GREEN, [_at("green square")], "00001"),
        (TWO_GREEN, [_at("green square")] * 3, "01101"),
        (BOTH, [_at("red circle"), _at("blue square")], "11111"),
        (BOTH, [_at("blue circle"), _at("red square")], "01111"),
        (LEFT, [_at("blue square", 24), _at("red circle", 8)], "11111"),
        (LEFT, [_at("blue square", 8), _at("red circle", 24)], "01110"),
        (LEFT, [_at("blue circle", 24), _at("red square", 8)], "01110"),
        (LEFT, [_at("red circle", 8)], "00000"),
    ],
)
def test_a_verdict_says_what_is_right(prompt: Prompt, seen: list[Object], expected: str) -> None:
    verdict = score(prompt, seen)
    parts = (
        verdict.correct,
        verdict.color_correct,
        verdict.shape_correct,
        verdict.count_correct,
        verdict.position_correct,
    )
    assert "".join(str(int(part)) for part in parts) == expected
    assert bool(verdict.reason) is not verdict.correct


@pytest.mark.parametrize(
    ("relation", "x", "y"),
    [("left of", 8, 16), ("right of", 24, 16), ("above", 16, 8), ("below", 16, 24)],
)
def test_each_relation_is_where_it_says(relation: str, x: float, y: float) -> None:
    include = (Include("red", "circle"), Include("blue", "square"))
    for asked in words.RELATIONS:
        prompt = Prompt("position", "", include, asked)
        verdict = score(prompt, [_at("red circle", x, y), _at("blue square")])
        assert verdict.position_correct is (asked == relation)


@pytest.fixture(scope="module")
def said() -> set[str]:
    """Patterns of captions, colours and shapes made one."""
    weights = SceneWeights(single=0.4, count=0.2, group=0.2, relation=0.2)
    config = ShapesConfig(num_images=1500, seed=1, weights=weights)
    return {_pattern(describe(config, index)[1]) for index in range(1500)}


@pytest.mark.parametrize("task", TASKS)
def test_every_prompt_is_worded_as_captions_are(task: str, said: set[str]) -> None:
    assert {_pattern(prompt.text) for prompt in TASKS[task]()} <= said  # type: ignore[index]


def _pattern(caption: str) -> str:
    for color in words.COLORS:
        caption = caption.replace(color, "C")
    for shape in words.SHAPES:
        caption = caption.replace(shape, "S")
    return caption


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_drawn_evenly_and_the_same_for_a_seed(task: str) -> None:
    every = TASKS[task]()  # type: ignore[index]
    assert len({prompt.text for prompt in every}) == len(every)
    drawn = make_prompts(task, 2 * len(every) + 5, seed=3)  # type: ignore[arg-type]
    assert len(drawn) == 2 * len(every) + 5
    assert set(drawn[: len(every)]) == set(every)
    assert drawn == make_prompts(task, len(drawn), seed=3)  # type: ignore[arg-type]
    assert drawn != make_prompts(task, len(drawn), seed=4)  # type: ignore[arg-type]
    assert {prompt.tag for prompt in drawn} == {task}


def test_single_objects_are_asked_for_as_classes_and_judged_as_before() -> None:
    plain = make_prompts("single_object", 18, seed=3)
    classes = make_prompts("single_object", 18, seed=3, class_prompt="An image of {label}.")
    assert [one.include for one in classes] == [one.include for one in plain]
    assert all(
        one.text == f"An image of {one.include[0].color} {one.include[0].shape}." for one in classes
    )
    assert make_prompts("counting", 5, seed=3, class_prompt="{label}") == make_prompts(
        "counting", 5, seed=3
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_asks_for_what_its_words_say(task: str) -> None:
    for prompt in TASKS[task]():  # type: ignore[index]
        reading = words.read_caption(prompt.text)
        wanted = [(one.color, one.shape) for one in prompt.include for _ in range(one.count)]
        assert reading.looks() == wanted
        assert reading.relation == prompt.relation


def test_metadata_has_the_fields_of_geneval() -> None:
    assert TWO_GREEN.metadata() == {
        "tag": "counting",
        "include": [{"class": "square", "color": "green", "count": 2}],
        "prompt": "two green squares",
    }
    assert LEFT.metadata()["include"] == [
        {"class": "square", "color": "blue", "count": 1},
        {"class": "circle", "color": "red", "count": 1, "position": ["left of", 0]},
    ]


@pytest.mark.parametrize(
    ("caption", "looks", "reference", "expected"),
    [
        # colour, shape, exact
        ("a red circle", ["red circle"], None, "111"),
        ("There is a small circle that is RED.", ["red circle"], None, "111"),
        ("a red square", ["red circle"], None, "100"),
        ("a blue circle", ["red circle"], None, "010"),
        ("a circle", ["red circle"], None, "010"),
        ("", ["red circle"], None, "000"),
        ("two green squares", ["green square", "green square"], None, "111"),
        ("three green squares", ["green square", "green square"], None, "110"),
        ("a red circle and a blue square", ["blue square", "red circle"], None, "111"),
        ("a blue circle and a red square", ["blue square", "red circle"], None, "110"),
        ("a red circle", ["blue square", "red circle"], None, "000"),
        (
            "a blue square right of a red circle",
            ["red circle", "blue square"],
            "a red circle to the left of a blue square",
            "111",
        ),
        (
            "a red circle right of a blue square",
            ["red circle", "blue square"],
            "a red circle left of a blue square",
            "110",
        ),
        (
            "a red circle and a blue square",
            ["red circle", "blue square"],
            "a red circle above a blue square",
            "110",
        ),
    ],
)
def test_a_caption_is_read_as_a_person_would(
    caption: str, looks: list[str], reference: str | None, expected: str
) -> None:
    pairs = [tuple(look.split()) for look in looks]
    verdict = score_caption(caption, pairs, reference)  # type: ignore[arg-type]
    parts = (verdict.color_correct, verdict.shape_correct, verdict.exact)
    assert "".join(str(int(part)) for part in parts) == expected


def test_every_drawn_caption_is_exact_for_its_own_scene() -> None:
    config = ShapesConfig(num_images=1000, seed=2)
    for index in range(1000):
        scene, caption = describe(config, index)
        verdict = score_caption(caption, words.looks_of(scene.to_json()), caption)
        assert verdict == CaptionVerdict(True, True, True), caption


def test_metrics_are_means_and_tasks_weigh_the_same() -> None:
    right = Verdict(True, True, True, True, True, "")
    shapeless = Verdict(False, True, False, True, True, "shows red square")
    astray = Verdict(False, True, True, True, False, "not left of")
    metrics = image_metrics(
        [RED_CIRCLE, RED_CIRCLE, RED_CIRCLE, RED_CIRCLE, LEFT],
        [right, right, right, shapeless, astray],
    )
    assert metrics["single_object.accuracy"] == 0.75
    assert metrics["single_object.color_accuracy"] == 1.0
    assert metrics["single_object.color_shape_accuracy"] == 0.75
    assert metrics["position.accuracy"] == 0.0
    assert metrics["position.position_accuracy"] == 0.0
    assert metrics["accuracy"] == 0.375
    captions = caption_metrics(
        [CaptionVerdict(True, True, True), CaptionVerdict(True, False, False)]
    )
    assert captions == {
        "caption.color_accuracy": 1.0,
        "caption.shape_accuracy": 0.5,
        "caption.color_shape_accuracy": 0.5,
        "caption.exact_match": 0.5,
    }


def test_drawing_and_reading_name_the_same_world() -> None:
    from data_pipelines.shapes_world import drawing, scene

    assert dict(drawing.RGB) == dict(PALETTE)
    assert scene.COLORS == words.COLORS
    assert scene.SHAPES == words.SHAPES
