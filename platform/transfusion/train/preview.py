"""Pictures and words while training, with the averaged weights, on rank 0.

Held-out captions are drawn, and held-out images described where that is asked for. Pictures are to be looked at,
and outside every digest; the evaluation scores.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.package.run import said_by
from transfusion.sample.engine import generate
from transfusion.sample.events import Result
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer
from transfusion.train.config import TrainConfig
from transfusion.train.pictures import NUM_SHOWN, Preview, png_row

SAMPLING = SamplingDefaults(solver="dpm++", num_inference_steps=20)


class Pair(NamedTuple):
    """A caption and its image."""

    caption: tuple[int, ...]
    image: Tensor
    """Normalised latent, c h w; where images are tokens, their codes, 1 1 p."""


class Painter:
    """Draws captions and describes images with weights that are handed in."""

    def __init__(
        self, config: TrainConfig, plan: Mixture, mixture: Artifact, *, device: torch.device
    ) -> None:
        tokens, autoencoder = _origins(plan, mixture)
        self._tokenizer = Tokenizer(tokens.input("tokenizer").read(MODEL))
        self._autoencoder = Autoencoder.load(autoencoder.folder(), device=device)
        self._device = device
        # The trainer's own weights are on the device, too: no more beside them than a forward needs.
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._num_described = config.preview_captions
        self._config = PackageConfig(
            name="training",
            model=config.model,
            num_pieces=plan.num_pieces,
            special_ids={},
            layout=SequenceLayout.model_validate(plan.layout),
            sampling=SAMPLING,
            files={},
            **said_by(plan, config.objective, downsampling=self._autoencoder.downsampling),
        )

    def paint(self, weights: Mapping[str, Tensor], pairs: Sequence[Pair]) -> Preview:
        """One picture a caption, with the same draws every time; and what is said of the first images."""
        config = self._config
        with torch.device("meta"):
            model = TransfusionModel(
                config.model,
                vocab_size=config.special.vocab_size,
                latent_channels=config.latent_channels,
                variance=config.variance,
            )
        model.load_state_dict(dict(weights), assign=True)
        model = model.to(self._device, self._dtype).eval()
        requests = [
            Request(
                (TextPart(pair.caption),),
                SamplingParams(**SAMPLING.resolved(), seed=index, modalities=("image",)),
            )
            for index, pair in enumerate(pairs)
        ]
        drawn = torch.stack(
            [image for result in generate(model, config, requests) for image in result.images]
        )
        if config.num_codes:
            pictures = self._autoencoder.decode_indices(drawn[:, 0])
        else:
            pictures = self._autoencoder.decode(drawn)
        about: dict[str, object] = {"prompts": [self._decode(pair.caption) for pair in pairs]}
        values = {}
        if self._num_described:
            said = self._describe(model, pairs[: self._num_described])
            about["captions"] = [
                {"reference": self._decode(pair.caption), "caption": self._decode(words)}
                for pair, words in zip(pairs, said, strict=False)
            ]
            right = [
                token_accuracy(words, pair.caption)
                for words, pair in zip(said, pairs, strict=False)
            ]
            values["caption_token_accuracy"] = sum(right) / len(right)
        return Preview(png=png_row(pictures.cpu().numpy()), about=about, values=values)

    def _describe(self, model: TransfusionModel, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        """The likeliest words behind each image, and no longer than its own by more than one."""
        requests = [
            Request(
                (ImagePart(pair.image),),
                SamplingParams(
                    temperature=0.0, max_tokens=len(pair.caption) + 1, modalities=("text",)
                ),
            )
            for pair in pairs
        ]
        return [_words(result) for result in generate(model, self._config, requests)]

    def _decode(self, ids: tuple[int, ...]) -> str:
        return self._tokenizer.decode(ids)


def token_accuracy(written: Sequence[int], reference: Sequence[int]) -> float:
    """Share of places, of the longer of the two, at which both have the same token; 1 for the very words."""
    same = sum(ours == theirs for ours, theirs in zip(written, reference, strict=False))
    return same / max(len(written), len(reference))


def held_out_pairs(
    batch: PackedBatch, special: SpecialIds, *, count: int = NUM_SHOWN
) -> list[Pair]:
    """Captions that stand right before their image in a batch, the first so many that differ."""
    ids = batch.token_ids.flatten().tolist()
    pairs: dict[tuple[int, ...], Pair] = {}
    for boi, image in _images(batch, ids, special):
        start = boi
        while start > 0 and ids[start - 1] < special.pad:
            start -= 1
        if start < boi and start > 0 and ids[start - 1] == special.bos:
            caption = tuple(ids[start:boi])
            pairs.setdefault(caption, Pair(caption, image))
    return list(pairs.values())[:count]


def _images(
    batch: PackedBatch, ids: Sequence[int], special: SpecialIds
) -> list[tuple[int, Tensor]]:
    """Where the BOI of each image stands, and the image."""
    if special.num_codes:
        found = []
        for boi in (place for place, token in enumerate(ids) if token == special.boi):
            # Whatever does not fit a sequence is not in the plan: every block is whole.
            codes = torch.tensor(ids[boi + 1 : ids.index(special.eoi, boi)]) - special.first_code
            found.append((boi, codes.view(1, 1, -1)))
        return found
    slots = zip(batch.image_positions[:, 0].tolist(), batch.image_weight.tolist(), strict=True)
    return [
        (first - 1, latent)
        for (first, weight), latent in zip(slots, batch.latents, strict=True)
        if weight
    ]


def _origins(plan: Mixture, mixture: Artifact) -> tuple[Artifact, Artifact]:
    """Tokens of a source with images, and the autoencoder that these went through."""
    for source in plan.sources.values():
        tokens = mixture.input(source.tokens)
        images = tokens if source.latents is None else mixture.input(source.latents)
        if "autoencoder" in images.manifest.inputs:
            return tokens, images.input("autoencoder")
    raise ValueError("no source of the mixture has images")


def _words(result: Result) -> tuple[int, ...]:
    return tuple(token for part in result.parts if isinstance(part, TextPart) for token in part.ids)
