"""Both losses on the mixture's held-out batches, whose draws are the same in every run."""

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.noising import Noising
from transfusion.diffusion.targets import clean_and_noise
from transfusion.evaluate.codes import LossByKind
from transfusion.ingest.reader import MixtureReader
from transfusion.objective import image_errors, loss_sums
from transfusion.package.load import Package


@torch.inference_mode()
def validation_losses(package: Package, mixture: Artifact) -> dict[str, float]:
    """`validation.lm_loss` in nats a token and `validation.diffusion_loss` an image; none without batches.

    A model that predicts another target than the noise has `validation.noise_loss` too: the error of the noise
    that its predictions stand for, to be compared with models of other targets on the same schedule. Where images
    are tokens, `validation.code_loss` and `validation.text_loss` part the language loss.
    """
    config = package.config
    # Not shifted and not weighted, whatever the model was trained with: the same timesteps for all.
    plain = {"timestep_shift": 1.0, "noise_limit": min(500, config.num_timesteps)}
    objective = ObjectiveConfig(**(config.noise.resolved() | plain))
    reader = MixtureReader(mixture, seed=0, objective=objective)
    noising = Noising.of(objective, device=package.device)
    by_kind = LossByKind(config.special)
    lm = lm_count = diffusion = of_noise = images = 0.0
    for index in range(reader.num_validation):
        batch = reader.validation(index).to(package.device)
        noised = noising.apply(batch.latents, batch.noise, batch.timesteps, clean=batch.clean)
        output = package.model(batch, noised.latents)
        sums = loss_sums(output, batch, noised)
        if config.num_codes:
            by_kind.add(output.logits, batch)
        lm, lm_count = lm + float(sums.lm_sum), lm_count + float(sums.lm_count)
        diffusion += float(sums.diffusion_sum)
        images += float(sums.image_count)
        _, implied = clean_and_noise(
            config.target, output.epsilon, noised.latents, batch.timesteps, noising.path
        )
        errors = image_errors(implied, batch.noise)
        of_noise += float((errors * batch.image_weight).sum())
    losses = {}
    if lm_count:
        losses["validation.lm_loss"] = lm / lm_count
    losses |= by_kind.losses()
    if images:
        losses["validation.diffusion_loss"] = diffusion / images
        if config.target != "epsilon":
            losses["validation.noise_loss"] = of_noise / images
    return losses
