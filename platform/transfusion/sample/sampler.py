"""A package's sampler: prompts and pixels in, text and pixels out.

Axes: h w = pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from transfusion.package.load import Package, PackageParts
from transfusion.sample.engine import Watch, generate
from transfusion.sample.events import FinishReason, Result, TokenScore
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, Part, TextPart
from transfusion.sample.rows import Request

Pixels = UInt8[np.ndarray, "h w 3"]
Segment = str | np.ndarray
"""Text, or the pixels of an image as uint8 (h, w, 3)."""

Given = Segment | Sequence[int]
"""What a prompt may hold: token ids stand for text."""

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
    prompt_scores: tuple[TokenScore, ...] = ()
    scores: tuple[TokenScore, ...] = ()

    @property
    def text(self) -> str:
        """All text, images passed over."""
        return "".join(segment for segment in self.segments if isinstance(segment, str))

    @property
    def images(self) -> list[np.ndarray]:
        """The images, in order."""
        return [segment for segment in self.segments if isinstance(segment, np.ndarray)]


class Processor:
    """Turns prompts and pixels into requests, and what the engine made into text and pixels."""

    def __init__(self, package: PackageParts) -> None:
        self.package = package

    def request(
        self,
        prompt: str | Sequence[Given],
        params: SamplingParams,
        *,
        negative_prompt: str = "",
    ) -> Request:
        """A prompt as the engine takes it. Text that spells a special token stays text.

        Raises:
            ValueError: An image is not of the model's size.
        """
        segments: list[Given] = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = self.package.tokenizer.encode(negative_prompt).tolist()
        parts = tuple(self._part(one) for one in segments if len(one))
        return Request(parts, params, tuple(negative))

    def warm_up(self) -> None:
        """Makes a first image of nothing, which grows what later ones find."""
        config = self.package.config
        blank = torch.zeros(config.latent_shape)
        if config.num_codes:
            blank = torch.zeros(1, config.latent_height, config.latent_width, dtype=torch.long)
        self.pixels_of([ImagePart(blank)])

    def num_positions(self, prompt: str) -> int:
        """Positions that a prompt takes, BOS included."""
        return len(self.package.tokenizer.encode(prompt)) + 1

    def sample_of(self, result: Result, pixels: Iterator[Pixels]) -> Sample:
        """A result as text and pixels, taking from `pixels` those of its images."""
        return Sample(
            segments=tuple(
                next(pixels) if isinstance(part, ImagePart) else self.text_of(part)
                for part in result.parts
            ),
            finish_reason=result.finish_reason,
            prompt_tokens=result.prompt_length,
            completion_tokens=result.num_tokens,
            prompt_scores=tuple(result.prompt_scores),
            scores=tuple(result.scores),
        )

    def text_of(self, part: TextPart) -> str:
        """What a stretch of tokens says, cut where a stop string came."""
        return self.package.tokenizer.decode(part.ids) if part.text is None else part.text

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

    def _part(self, segment: Given) -> Part:
        if isinstance(segment, str):
            return TextPart(tuple(self.package.tokenizer.encode(segment).tolist()))
        if not isinstance(segment, np.ndarray):
            return TextPart(tuple(segment))
        size = self.package.config.image_size_px
        if segment.shape != (size, size, 3):
            raise ValueError(
                f"an image must be {size} x {size} px RGB, got an array of {segment.shape}"
            )
        return self.encode_images([segment])[0]


class Sampler(Processor):
    """Answers batches of prompts; calls from several threads do not touch each other."""

    package: Package

    def __init__(self, package: Package) -> None:
        super().__init__(package)

    def sample(
        self,
        requests: Sequence[Request],
        *,
        watch: Watch | None = None,
        max_rows: int | None = None,
    ) -> list[Sample]:
        """Answers requests together; see `engine.generate`."""
        stops = any(request.params.stop for request in requests)
        results = generate(
            self.package.model,
            self.package.config,
            requests,
            watch=watch,
            decode=self.package.tokenizer.decode if stops else None,
            max_rows=max_rows,
        )
        drawn = [part for one in results for part in one.parts if isinstance(part, ImagePart)]
        pixels = iter(self.pixels_of(drawn))
        return [self.sample_of(result, pixels) for result in results]
