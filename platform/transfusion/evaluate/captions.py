"""Descriptions of held-out images, by the model that drew others."""

from collections.abc import Sequence
from dataclasses import dataclass

from transfusion.evaluate.held_out import CaptionedImage
from transfusion.evaluate.pictures import Advance
from transfusion.sample.engine import Request
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart
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
    batch_size: int,
    advance: Advance,
) -> list[Described]:
    """The likeliest words, token by token, for each image."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, modalities=("text",))
    normalize = sampler.package.autoencoder.normalize
    decode = sampler.package.tokenizer.decode
    found: list[Described] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        requests = [Request((ImagePart(normalize(one.latent[None])[0]),), params) for one in batch]
        found += [
            Described(one.key, decode(one.caption_ids).strip(), sample.text.strip())
            for one, sample in zip(batch, sampler.sample(requests), strict=True)
        ]
        advance(len(batch))
    return found
