"""Pictures while training: held-out captions drawn with the averaged weights, on rank 0.

They are to be looked at, and outside every digest; the evaluation scores.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer
from transfusion.train.config import TrainConfig
from transfusion.train.pictures import NUM_SHOWN, Preview, png_row

SAMPLING = SamplingDefaults(solver="dpm++", num_inference_steps=20)


class Painter:
    """Draws captions with weights that are handed in."""

    def __init__(
        self, config: TrainConfig, plan: Mixture, mixture: Artifact, *, device: torch.device
    ) -> None:
        source = next(source for source in plan.sources.values() if source.latents is not None)
        assert source.latents is not None
        tokens, latents = mixture.input(source.tokens), mixture.input(source.latents)
        self._tokenizer = Tokenizer(tokens.input("tokenizer").read(MODEL))
        folder = latents.input("autoencoder").folder()
        self._autoencoder = Autoencoder.load(folder, device=device)
        self._device = device
        self._config = PackageConfig(
            name="training",
            model=config.model,
            num_pieces=plan.num_pieces,
            num_codes=plan.num_codes,
            special_ids={},
            layout=SequenceLayout.model_validate(plan.layout),
            sequence_length=plan.sequence_length,
            latent_channels=plan.latent_channels,
            latent_height=plan.latent_height,
            latent_width=plan.latent_width,
            image_size_px=plan.latent_height * self._autoencoder.downsampling,
            schedule=config.objective.schedule,
            num_timesteps=config.objective.num_timesteps,
            target=config.objective.target,
            timestep_shift=config.objective.timestep_shift,
            variance=config.objective.variance,
            sampling=SAMPLING,
            files={},
        )

    def paint(self, weights: Mapping[str, Tensor], captions: Sequence[tuple[int, ...]]) -> Preview:
        """One picture a caption, with the same draws every time."""
        config = self._config
        with torch.device("meta"):
            model = TransfusionModel(
                config.model,
                vocab_size=config.special.vocab_size,
                latent_channels=config.latent_channels,
                variance=config.variance,
            )
        model.load_state_dict(dict(weights), assign=True)
        requests = [
            Request(
                (TextPart(ids),),
                SamplingParams(**SAMPLING.resolved(), seed=index, modalities=("image",)),
            )
            for index, ids in enumerate(captions)
        ]
        results = generate(model.to(self._device).eval(), config, requests)
        latents = [latent for result in results for latent in result.images]
        pictures = self._autoencoder.decode(torch.stack(latents)).cpu().numpy()
        prompts = [self._tokenizer.decode(ids) for ids in captions]
        return Preview(png=png_row(pictures), about={"prompts": prompts})


def held_out_captions(
    batch: PackedBatch, special: SpecialIds, *, count: int = NUM_SHOWN
) -> list[tuple[int, ...]]:
    """Captions that stand right before their image in a batch, the first so many that differ."""
    ids = batch.token_ids.flatten().tolist()
    captions: dict[tuple[int, ...], None] = {}
    for first_patch, weight in zip(
        batch.image_positions[:, 0].tolist(), batch.image_weight.tolist(), strict=True
    ):
        boi = first_patch - 1
        start = boi
        while weight and start > 0 and ids[start - 1] < special.pad:
            start -= 1
        if weight and start < boi and start > 0 and ids[start - 1] == special.bos:
            captions.setdefault(tuple(ids[start:boi]))
    return list(captions)[:count]
