"""Descriptions of held-out images, by the model that drew others."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from transfusion.evaluate.batches import Advance, in_batches
from transfusion.evaluate.held_out import CaptionedImage
from transfusion.sample.params import SamplingParams
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sampler


@dataclass(frozen=True, slots=True)
class Described:
    """An image, what its document says, and what the model says."""

    key: str
    reference: str
    caption: str


def describe(
    sampler: Sampler,
    images: Sequence[CaptionedImage],
    *,
    max_tokens: int,
    workers: ThreadPoolExecutor,
    batch_size: int,
    advance: Advance,
) -> list[Described]:
    """The likeliest words, token by token, for each image."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, modalities=("text",))
    decode = sampler.package.tokenizer.decode

    def say(batch: Sequence[CaptionedImage]) -> list[Described]:
        parts = sampler.parts_of(torch.stack([one.latent for one in batch]))
        requests = [Request((part,), params) for part in parts]
        return [
            Described(one.key, decode(one.caption_ids).strip(), sample.text.strip())
            for one, sample in zip(batch, sampler.sample(requests), strict=True)
        ]

    return in_batches(workers, say, images, batch_size=batch_size, advance=advance)
