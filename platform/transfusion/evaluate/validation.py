"""Both losses on the mixture's held-out batches, whose draws are the same in every run."""

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.schedules import add_noise, alphas_cumprod
from transfusion.ingest.reader import MixtureReader
from transfusion.objective import loss_sums
from transfusion.package.load import Package


@torch.inference_mode()
def validation_losses(package: Package, mixture: Artifact) -> dict[str, float]:
    """`validation.lm_loss` in nats a token and `validation.diffusion_loss` an image; none without batches."""
    config = package.config
    objective = ObjectiveConfig(
        schedule=config.schedule,
        num_timesteps=config.num_timesteps,
        noise_limit=min(500, config.num_timesteps),
    )
    reader = MixtureReader(mixture, seed=0, objective=objective)
    schedule = alphas_cumprod(config.schedule, config.num_timesteps).to(package.device)
    lm = lm_count = diffusion = images = 0.0
    for index in range(reader.num_validation):
        batch = reader.validation(index).to(package.device)
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, schedule)
        sums = loss_sums(package.model(batch, noisy), batch)
        lm, lm_count = lm + float(sums.lm_sum), lm_count + float(sums.lm_count)
        diffusion += float(sums.diffusion_sum)
        images += float(sums.image_count)
    losses = {}
    if lm_count:
        losses["validation.lm_loss"] = lm / lm_count
    if images:
        losses["validation.diffusion_loss"] = diffusion / images
    return losses
