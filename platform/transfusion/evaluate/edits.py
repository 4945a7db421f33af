"""Held-out edits, drawn: does what was made look like what was asked for, and not like another edit?

Nothing here knows what an instruction means. An image that has several true edits is the judge of each: over the
area where these differ from each other, the made image has a mean colour, and the true edit whose mean colour is
nearest should be the one that was asked for. All pictures are seen through the autoencoder: its blur is no fault.

Axes: k = edits of one image, h w = pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from transfusion.evaluate.batches import in_batches
from transfusion.evaluate.ceiling import mean_psnr_db
from transfusion.evaluate.held_out import Edit
from transfusion.evaluate.judges import Evaluation
from transfusion.evaluate.pictures import image_params, save_pictures, seed_of
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request

Pixels = UInt8[np.ndarray, "h w 3"]

EDITS = "edits.json"
"""A row a held-out edit."""


def judge_edits(evaluation: Evaluation, edits: Sequence[Edit]) -> None:
    """Draws every edit; those whose image has several are judged.

    `edits.accuracy` is the share that is nearest to what was asked for, beside `edits.chance` and the
    `edits.unchanged_accuracy` of images that are left as they were.
    """
    if not edits:
        return
    sampler = evaluation.sampler
    decode = sampler.package.tokenizer.decode
    with evaluation.timed("edits"):
        made = _draw(evaluation, edits)
        befores = sampler.pixels_of(
            sampler.parts_of(torch.stack([one.images[-1] for one in edits]))
        )
        afters = sampler.pixels_of(sampler.parts_of(torch.stack([one.target for one in edits])))
    asked = [decode(one.instruction_ids).strip() for one in edits]
    judges = _judges(edits, afters)
    verdicts = [judges[one.of].nearest(picture) for one, picture in zip(edits, made, strict=True)]
    unchanged = [judges[one.of].nearest(before) for one, before in zip(edits, befores, strict=True)]
    names = {
        kind: save_pictures(evaluation.folder / "edits", pictures, f"-{kind}")
        for kind, pictures in (("source", befores), ("made", made), ("true", afters))
    }
    records = []
    for number, (edit, nearest) in enumerate(zip(edits, verdicts, strict=True)):
        record: dict[str, Any] = {"key": edit.key, "instruction": asked[number]}
        record |= {kind: files[number] for kind, files in names.items()}
        if nearest is not None:
            record |= {"correct": nearest == number, "nearest": asked[nearest]}
        records.append(record)
    evaluation.write(EDITS, records)
    judged = [i for i, nearest in enumerate(verdicts) if nearest is not None]
    metrics = {
        "edits.psnr_db": mean_psnr_db(afters, made),
        "edits.unchanged_psnr_db": mean_psnr_db(afters, befores),
    }
    if judged:
        metrics |= {
            "edits.accuracy": float(np.mean([verdicts[i] == i for i in judged])),
            "edits.unchanged_accuracy": float(np.mean([unchanged[i] == i for i in judged])),
            "edits.chance": float(np.mean([1 / len(judges[edits[i].of].members) for i in judged])),
        }
    evaluation.metrics |= metrics


@dataclass(frozen=True)
class Judge:
    """The true edits of one image."""

    members: Sequence[int]
    """Their places among all edits."""
    weight: Float64[np.ndarray, "h w 1"]
    """How much they differ from each other, adding up to 1; 0 everywhere where they do not."""
    colours: Float64[np.ndarray, "k 3"]

    @classmethod
    def of(cls, members: Sequence[int], pictures: Sequence[Pixels]) -> "Judge":
        """Of the edits of one image, and what they look like."""
        spread = np.stack(pictures).astype(np.float64).std(axis=0).mean(axis=-1, keepdims=True)
        weight = spread / max(float(spread.sum()), 1e-9)
        return cls(members, weight, np.stack([_colour(one, weight) for one in pictures]))

    def nearest(self, picture: Pixels) -> int | None:
        """The place of the edit that a picture looks most like; None where there is nothing to choose from."""
        if len(self.members) < 2 or not self.weight.any():
            return None
        distance = ((self.colours - _colour(picture, self.weight)) ** 2).sum(axis=1)
        return self.members[int(distance.argmin())]


def _colour(picture: Pixels, weight: Float64[np.ndarray, "h w 1"]) -> Float64[np.ndarray, " 3"]:
    return (picture * weight).sum(axis=(0, 1))


def _judges(edits: Sequence[Edit], afters: Sequence[Pixels]) -> Mapping[tuple[bytes, ...], Judge]:
    places: dict[tuple[bytes, ...], list[int]] = {}
    for number, edit in enumerate(edits):
        places.setdefault(edit.of, []).append(number)
    return {of: Judge.of(found, [afters[i] for i in found]) for of, found in places.items()}


def _draw(evaluation: Evaluation, edits: Sequence[Edit]) -> list[Pixels]:
    config, sampler = evaluation.config, evaluation.sampler

    def draw(batch: Sequence[tuple[int, Edit]]) -> list[Pixels]:
        requests = [
            Request(
                (*sampler.parts_of(edit.images), TextPart(edit.instruction_ids)),
                image_params(
                    config,
                    seed_of(config.seed, "edit", number),
                    image_guidance_scale=config.image_guidance_scale,
                ),
            )
            for number, edit in batch
        ]
        return [image for sample in sampler.sample(requests) for image in sample.images]

    return in_batches(
        evaluation.workers,
        draw,
        list(enumerate(edits)),
        batch_size=config.batch_size,
        advance=evaluation.advance,
    )
