"""A package's sampler: prompts and pixels in, text and pixels out.

Axes: h w = pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from transfusion.package.load import Package
from transfusion.sample.engine import Watch, generate
from transfusion.sample.events import FinishReason
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, Part, TextPart
from transfusion.sample.rows import Request

Pixels = UInt8[np.ndarray, "h w 3"]
Segment = str | np.ndarray
"""Text, or the pixels of an image as uint8 (h, w, 3)."""

DECODED_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """What came behind a prompt, in order."""

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    """Positions of the prompt, BOS and patches included."""
    completion_tokens: int
    """Text tokens written."""

    @property
    def text(self) -> str:
        """All text, images passed over."""
        return "".join(segment for segment in self.segments if isinstance(segment, str))

    @property
    def images(self) -> list[np.ndarray]:
        """The images, in order."""
        return [segment for segment in self.segments if isinstance(segment, np.ndarray)]


class Sampler:
    """Answers batches of prompts; calls from several threads do not touch each other."""

    def __init__(self, package: Package) -> None:
        self.package = package

    def request(self, prompt: str | Sequence[Segment], params: SamplingParams) -> Request:
        """A prompt as the engine takes it. Text that spells a special token stays text.

        Raises:
            ValueError: An image is not of the model's size.
        """
        segments = [prompt] if isinstance(prompt, str) else list(prompt)
        return Request(tuple(self._part(one) for one in segments if len(one)), params)

    def num_positions(self, prompt: str) -> int:
        """Positions that a prompt takes, BOS included."""
        return len(self.package.tokenizer.encode(prompt)) + 1

    def sample(self, requests: Sequence[Request], *, watch: Watch | None = None) -> list[Sample]:
        """Answers requests together; see `engine.generate`."""
        results = generate(self.package.model, self.package.config, requests, watch=watch)
        drawn = [part for one in results for part in one.parts if isinstance(part, ImagePart)]
        pixels = iter(self.pixels_of(drawn))
        samples = []
        for result in results:
            segments: list[Segment] = [
                self.package.tokenizer.decode(part.ids)
                if isinstance(part, TextPart)
                else next(pixels)
                for part in result.parts
            ]
            samples.append(
                Sample(
                    segments=tuple(segments),
                    finish_reason=result.finish_reason,
                    prompt_tokens=result.prompt_length,
                    completion_tokens=result.num_tokens,
                )
            )
        return samples

    def encode_images(self, images: Sequence[Pixels]) -> list[ImagePart]:
        """Images as clean latents (the posterior's mean, normalised), or as codes."""
        if not images:
            return []
        autoencoder, pixels = self.package.autoencoder, torch.from_numpy(np.stack(images))
        if self.package.config.num_codes:
            codes = autoencoder.encode_indices(pixels)
            return [ImagePart(latent) for latent in rearrange(codes, "b i j -> b 1 i j")]
        return [
            ImagePart(latent) for latent in autoencoder.normalize(autoencoder.encode(pixels).mean)
        ]

    def parts_of(self, raw: torch.Tensor) -> list[ImagePart]:
        """Images from what the data hold of them, all at once: raw latents, or codes."""
        if self.package.config.num_codes:
            return [ImagePart(codes) for codes in raw]
        return [ImagePart(latent) for latent in self.package.autoencoder.normalize(raw)]

    @torch.inference_mode()
    def pixels_of(self, parts: Sequence[ImagePart]) -> list[Pixels]:
        """What the autoencoder makes of images."""
        decoded: list[Pixels] = []
        for start in range(0, len(parts), DECODED_AT_ONCE):
            batch = torch.stack([part.latent for part in parts[start : start + DECODED_AT_ONCE]])
            autoencoder = self.package.autoencoder
            made = (
                autoencoder.decode_indices(batch[:, 0])
                if self.package.config.num_codes
                else autoencoder.decode(batch)
            )
            decoded.extend(made.cpu().numpy())
        return decoded

    def _part(self, segment: Segment) -> Part:
        if isinstance(segment, str):
            return TextPart(tuple(self.package.tokenizer.encode(segment).tolist()))
        size = self.package.config.image_size_px
        if segment.shape != (size, size, 3):
            raise ValueError(
                f"an image must be {size} x {size} px RGB, got an array of {segment.shape}"
            )
        return self.encode_images([segment])[0]
