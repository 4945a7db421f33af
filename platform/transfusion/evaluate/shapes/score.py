"""Verdicts on images and captions of the drawn world, and the metrics that they add up to.

Colour and shape are judged on as many objects as were asked for, the largest first, so that a speck beside the
right object does not make its colour wrong; it does make the count, and with it the image, wrong.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from transfusion.evaluate.shapes.detector import Object
from transfusion.evaluate.shapes.prompts import Prompt
from transfusion.evaluate.shapes.words import Color, Reading, Relation, Shape, read_caption

_CLEARLY = 0.5
"""How far, in pixels, centres must differ along the axis of a relation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right about an image; `correct` is everything, each colour on its own shape."""

    correct: bool
    color_correct: bool
    shape_correct: bool
    count_correct: bool
    position_correct: bool
    """True also where no relation was asked for."""

    reason: str
    """What is wrong, for a person; "" when nothing is."""


@dataclass(frozen=True, slots=True)
class CaptionVerdict:
    """What is right about a caption."""

    color_correct: bool
    """Every colour of the image is named and no other."""

    shape_correct: bool
    """Every shape of the image is named and no other."""

    exact: bool
    """Each object with its colour, shape and number, and the relation if there was a reference that has one."""


def score(prompt: Prompt, detections: Sequence[Object]) -> Verdict:
    """Compares what an image shows with what was asked for."""
    wanted = [(one.color, one.shape) for one in prompt.include for _ in range(one.count)]
    judged = sorted(detections, key=lambda one: -one.area)[: len(wanted)]
    seen = [(one.color, one.shape) for one in judged]
    color = Counter(c for c, _ in seen) == Counter(c for c, _ in wanted)
    shape = Counter(s for _, s in seen) == Counter(s for _, s in wanted)
    count = len(detections) == len(wanted)
    bound = Counter(seen) == Counter(wanted)
    position = prompt.relation is None or (bound and _stands(prompt, judged, prompt.relation))
    faults = []
    if not count:
        faults.append(f"{len(detections)} objects instead of {len(wanted)}")
    if not bound:
        shown = ", ".join(f"{c} {s}" for c, s in seen) or "nothing"
        faults.append(f"shows {shown}")
    if bound and not position:
        faults.append(f"not {prompt.relation}")
    return Verdict(
        correct=count and bound and position,
        color_correct=color,
        shape_correct=shape,
        count_correct=count,
        position_correct=position,
        reason="; ".join(faults),
    )


def score_caption(
    caption: str, looks: Sequence[tuple[Color | None, Shape | None]], reference: str | None = None
) -> CaptionVerdict:
    """Compares what a caption says with what the image shows.

    Args:
        looks: Colour and shape of each object, as `words.looks_of` takes them from a document's metadata.
        reference: The image's own caption; where it states a relation, an exact caption does so too, in the
            same or in converse words.
    """
    reading = read_caption(caption)
    named = reading.looks()
    stated = read_caption(reference) if reference is not None else None
    related = stated is None or stated.relation is None or _same_relation(reading, stated)
    return CaptionVerdict(
        color_correct={c for c, _ in named} == {c for c, _ in looks},
        shape_correct={s for _, s in named} == {s for _, s in looks},
        exact=Counter(named) == Counter(looks) and related,
    )


def image_metrics(prompts: Iterable[Prompt], verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Accuracies of each task, such as `single_object.color_accuracy`, and `accuracy`, their mean.

    As in GenEval, each task counts the same in the mean, however many prompts it has.
    """
    tasks: dict[str, list[Verdict]] = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        tasks.setdefault(prompt.tag, []).append(verdict)
    metrics = {}
    for task, given in tasks.items():
        metrics[f"{task}.accuracy"] = fmean(one.correct for one in given)
        metrics[f"{task}.color_accuracy"] = fmean(one.color_correct for one in given)
        metrics[f"{task}.shape_accuracy"] = fmean(one.shape_correct for one in given)
        metrics[f"{task}.color_shape_accuracy"] = fmean(
            one.color_correct and one.shape_correct for one in given
        )
        metrics[f"{task}.count_accuracy"] = fmean(one.count_correct for one in given)
    if "position" in tasks:
        metrics["position.position_accuracy"] = fmean(
            one.position_correct for one in tasks["position"]
        )
    if tasks:
        metrics["accuracy"] = sum(metrics[f"{task}.accuracy"] for task in tasks) / len(tasks)
    return metrics


def caption_metrics(verdicts: Sequence[CaptionVerdict]) -> dict[str, float]:
    """Accuracies such as `caption.color_accuracy`, and `caption.exact_match`; none without verdicts."""
    if not verdicts:
        return {}
    return {
        "caption.color_accuracy": fmean(one.color_correct for one in verdicts),
        "caption.shape_accuracy": fmean(one.shape_correct for one in verdicts),
        "caption.color_shape_accuracy": fmean(
            one.color_correct and one.shape_correct for one in verdicts
        ),
        "caption.exact_match": fmean(one.exact for one in verdicts),
    }


def _stands(prompt: Prompt, objects: Sequence[Object], relation: Relation) -> bool:
    first, second = (
        next(one for one in objects if (one.color, one.shape) == (want.color, want.shape))
        for want in prompt.include[:2]
    )
    ahead = {
        "left of": second.x - first.x,
        "right of": first.x - second.x,
        "above": second.y - first.y,
        "below": first.y - second.y,
    }
    return ahead[relation] > _CLEARLY


def _same_relation(said: Reading, stated: Reading) -> bool:
    if said.relation is None or len(said.things) != 2:
        return False
    if said.relation == stated.relation:
        return said.things == stated.things
    converse: dict[Relation, Relation] = {
        "left of": "right of",
        "right of": "left of",
        "above": "below",
        "below": "above",
    }
    return said.relation == converse[stated.relation or said.relation] and (
        said.things == stated.things[::-1]
    )
