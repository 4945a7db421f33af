"""Both losses on the mixture's held-out batches, whose draws are the same in every run."""

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.noising import Noising
from transfusion.ingest.reader import MixtureReader
from transfusion.objective import loss_sums
from transfusion.package.load import Package


@torch.inference_mode()
def validation_losses(package: Package, mixture: Artifact) -> dict[str, float]:
    """`validation.lm_loss` in nats a token and `validation.diffusion_loss` an image; none without batches."""
    config = package.config
    objective = ObjectiveConfig(
        **config.noise.resolved(), noise_limit=min(500, config.num_timesteps)
    )
    reader = MixtureReader(mixture, seed=0, objective=objective)
    noising = Noising.of(objective, device=package.device)
    lm = lm_count = diffusion = images = 0.0
    for index in range(reader.num_validation):
        batch = reader.validation(index).to(package.device)
        noised = noising.apply(batch.latents, batch.noise, batch.timesteps)
        sums = loss_sums(package.model(batch, noised.latents), batch, noised)
        lm, lm_count = lm + float(sums.lm_sum), lm_count + float(sums.lm_count)
        diffusion += float(sums.diffusion_sum)
        images += float(sums.image_count)
    losses = {}
    if lm_count:
        losses["validation.lm_loss"] = lm / lm_count
    if images:
        losses["validation.diffusion_loss"] = diffusion / images
    return losses
