"""Images at chosen places of a given text.

Each is drawn from what stands before its place: text as it is given, earlier images clean. The model is causal and
was never shown a text with a gap, so what stands behind a place has no part in its image. It only sets the place
for those that follow. What an image is to show must be said before it.
"""

from collections.abc import Sequence
from itertools import zip_longest

from transfusion.sample.engine import generate
from transfusion.sample.params import MAX_SEED, SamplingParams
from transfusion.sample.reading import ImagePart, Part
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sampler, Segment

PLACE = "[image]"
"""What stands for an image to be drawn, where a person writes the text."""

Document = Sequence[Segment | None]
"""Text and images that are given, and None wherever one is to be drawn."""


def with_places(text: str) -> list[Segment | None]:
    """A text in which `PLACE` marks where images go; white space around it is left out.

    Raises:
        ValueError: It marks no place.
    """
    texts = [part.strip() for part in text.split(PLACE)]
    if len(texts) == 1:
        raise ValueError(f"{text[:80]!r} marks no place for an image: write {PLACE} where it goes")
    segments: list[Segment | None] = []
    for part in texts:
        segments += [part, None] if part else [None]
    return segments[:-1]


def infill(
    sampler: Sampler, documents: Sequence[Document], params: Sequence[SamplingParams]
) -> list[tuple[Segment, ...]]:
    """Each document with its images drawn, those of the same number together.

    Args:
        params: Of each document. The first image is what the sampler draws of the text before it with that seed.

    Raises:
        ValueError: What stands before a place does not fit the model's context.
    """
    between = [
        [sampler.request(run, one).prompt for run in _runs(document)]
        for document, one in zip(documents, params, strict=True)
    ]
    drawn: list[list[ImagePart]] = [[] for _ in documents]
    for number in range(max((len(runs) - 1 for runs in between), default=0)):
        ahead = [index for index, runs in enumerate(between) if number < len(runs) - 1]
        requests = [
            Request(
                _prompt(between[index][: number + 1], drawn[index]),
                params[index].model_copy(
                    update={
                        "modalities": ("image",),
                        "seed": _seed(params[index].seed, number),
                    }
                ),
            )
            for index in ahead
        ]
        results = generate(sampler.package.model, sampler.package.config, requests)
        for index, result in zip(ahead, results, strict=True):
            drawn[index] += [part for part in result.parts if isinstance(part, ImagePart)]
    pixels = iter(sampler.pixels_of([part for parts in drawn for part in parts]))
    return [
        tuple(next(pixels) if segment is None else segment for segment in document)
        for document in documents
    ]


def _runs(document: Document) -> list[list[Segment]]:
    """What stands before, between and behind the places."""
    runs: list[list[Segment]] = [[]]
    for segment in document:
        if segment is None:
            runs.append([])
        else:
            runs[-1].append(segment)
    return runs


def _prompt(texts: Sequence[Sequence[Part]], images: Sequence[ImagePart]) -> tuple[Part, ...]:
    woven = zip_longest(texts, images)
    return tuple(
        part for text, image in woven for part in (*(text or ()), *([image] if image else []))
    )


def _seed(seed: int, number: int) -> int:
    """Another for each image of a document, or all would begin with the same noise."""
    return (seed + (number << 32)) & MAX_SEED
