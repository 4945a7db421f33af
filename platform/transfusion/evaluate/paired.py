"""Losses that runs are compared by: held-out images at fixed timesteps with fixed noise, the same for every model.

Validation during training packs what it draws, so another layout sees other draws; here each image has its own
sequence, and its noise follows from its key. Axes: b = images at once, c h w = latent.
"""

from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from transfusion.diffusion.noising import Noising
from transfusion.diffusion.targets import clean_and_noise
from transfusion.evaluate.held_out import CaptionedImage
from transfusion.objective import image_errors
from transfusion.package.load import Package
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.draws import Draws

NUM_TIMESTEPS = 20
"""Evenly spread over the schedule, in the middle of each twentieth."""

_PURPOSE = 64
_BATCH_SIZE = 64
_ROUND_TO = 32
"""Sequences are padded to a multiple, so that few shapes occur."""


@torch.inference_mode()
def paired_losses(package: Package, images: Sequence[CaptionedImage]) -> dict[str, float]:
    """`paired.noise_loss`, of images after captions, and `paired.caption_nll`, of captions after clean images.

    The first is the mean squared error of the noise that predictions stand for, over the elements of a latent, the
    fixed timesteps and all images, whatever the model was trained to predict; `paired.noise_loss_t0` to `_t3` are
    those of each quarter of the timesteps. The second is in nats a token, end of document included.
    """
    if not images:
        return {}
    config = package.config
    noising = Noising.of(config.noise, device=package.device)
    timesteps = [
        int((k + 0.5) / NUM_TIMESTEPS * config.num_timesteps) for k in range(NUM_TIMESTEPS)
    ]
    errors = np.zeros(NUM_TIMESTEPS)
    nll = tokens = 0.0
    for first in range(0, len(images), _BATCH_SIZE):
        part = images[first : first + _BATCH_SIZE]
        for k, timestep in enumerate(timesteps):
            batch = _batch(package, part, timestep=timestep, caption_first=True)
            noised = noising.apply(batch.latents, batch.noise, batch.timesteps)
            output = package.model(batch, noised.latents)
            _, implied = clean_and_noise(
                config.target, output.epsilon, noised.latents, batch.timesteps, noising.path
            )
            errors[k] += float(image_errors(implied, batch.noise).sum())
        batch = _batch(package, part, timestep=0, caption_first=False)
        logits = package.model(batch, batch.latents).logits.float()
        losses = F.cross_entropy(logits, batch.text_targets.long(), reduction="none")
        # That an image comes first is no part of its caption.
        counts = batch.text_weight * (batch.text_targets != config.special.boi)
        nll += float((losses * counts).sum())
        tokens += float(counts.sum())
    errors /= len(images)
    quarters = errors.reshape(4, -1).mean(axis=1)
    return {
        "paired.noise_loss": float(errors.mean()),
        **{f"paired.noise_loss_t{i}": float(value) for i, value in enumerate(quarters)},
        "paired.caption_nll": nll / tokens,
    }


def _batch(
    package: Package, images: Sequence[CaptionedImage], *, timestep: int, caption_first: bool
) -> PackedBatch:
    """A sequence an image."""
    config = package.config
    latents = package.autoencoder.normalize(torch.stack([one.latent for one in images]))
    height, width = (config.layout.patches(side) for side in config.latent_shape[1:])
    documents = []
    for image, latent in zip(images, latents.cpu().numpy(), strict=True):
        noise = _noise(image.key, timestep, config.latent_shape)
        given = ImageInput(latent=latent, noise=noise, timestep=timestep)
        spans: list[TextSpan | ImageSpan[ImageInput]] = [
            TextSpan(np.array(image.caption_ids, np.int32)),
            ImageSpan(height, width, given),
        ]
        documents.append(Document(tuple(spans if caption_first else reversed(spans))))
    longest = max(config.layout.document_length(document) for document in documents)
    return assemble(
        [[document] for document in documents],
        layout=config.layout,
        special=config.special,
        sequence_length=-(-longest // _ROUND_TO) * _ROUND_TO,
        image_slots=len(documents),
        text_rows=sum(len(image.caption_ids) + 3 for image in images),
        latent_shape=config.latent_shape,
    ).to(package.device)


def _noise(key: str, timestep: int, shape: tuple[int, int, int]) -> Float32[np.ndarray, "c h w"]:
    number = int.from_bytes(sha256(key.encode()).digest()[:8], "little")
    return Draws(0, _PURPOSE).at(number, timestep).standard_normal(shape, dtype=np.float32)
