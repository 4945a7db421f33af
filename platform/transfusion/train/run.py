"""Body of the stage, and what its workers build."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture, read_mixture
from transfusion.autoencoder.config import WEIGHTS_NAME
from transfusion.errors import ArtifactError
from transfusion.ingest.reader import MixtureReader
from transfusion.resources import TrainResources
from transfusion.stage import Made, StageContext
from transfusion.tokenizer.tokenizer import MODEL
from transfusion.train.config import TrainConfig
from transfusion.train.fits import plan_faults
from transfusion.train.init_from import ROLE, list_files
from transfusion.train.on_ray.worker import train_on_ray
from transfusion.train.pretrained import Start
from transfusion.train.preview import Painter
from transfusion.train.repeated import RepeatedFirstStep
from transfusion.train.step import TransformerTrainee


def run(config: TrainConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Trains on the mixture."""
    plan = read_mixture(inputs["mixture"])
    check_plan(config, plan)
    context.check_raw(list_files(config), what=f"init_from: {config.init_from}")
    return train_on_ray(
        "transfusion.train.run:build",
        config.resolved(),
        inputs,
        context,
        steps=config.steps,
        lanes=plan.lanes,
    )


def check_plan(config: TrainConfig, plan: Mixture) -> None:
    """Whether this model can be trained on this plan.

    Raises:
        ArtifactError: Every reason why not.
    """
    faults = plan_faults(config, plan)
    if faults:
        raise ArtifactError("\n".join(f"train: config{fault}" for fault in faults))


def build(
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    device: torch.device,
    resources: TrainResources,
) -> TransformerTrainee:
    """What a training worker calls."""
    checked = TrainConfig.model_validate_json(json.dumps(config))
    plan = read_mixture(inputs["mixture"])
    reader = MixtureReader(
        inputs["mixture"],
        seed=checked.seed,
        objective=checked.objective,
        cache_bytes=int(resources.data_cache_gib * 2**30),
    )
    return TransformerTrainee(
        checked,
        RepeatedFirstStep(reader) if checked.repeat_first_step else reader,
        num_pieces=plan.num_pieces,
        num_codes=plan.num_codes,
        latent_channels=plan.latent_channels,
        device=device,
        resources=resources,
        start=_start(checked, plan, inputs),
        painter=lambda: Painter(checked, plan, inputs["mixture"], device=device),
    )


def _start(config: TrainConfig, plan: Mixture, inputs: Mapping[str, Artifact]) -> Start | None:
    """What to start from, where the job says so."""
    if ROLE in inputs:
        folder = inputs[ROLE].folder()
    elif config.init_from is not None:
        folder = Path(config.init_from).expanduser()
    else:
        return None
    return Start(
        folder,
        strict=config.init_strict,
        tokenizer=_tokenizer(plan, inputs["mixture"]),
        grid_side=max(plan.latent_height, plan.latent_width) // config.model.patch_size,
        autoencoder=_autoencoder(plan, inputs["mixture"]),
    )


def _autoencoder(plan: Mixture, mixture: Artifact) -> str | None:
    """Identity of the weights that made the mixture's latents or codes; None where none are known."""
    for source in plan.sources.values():
        images = mixture.input(source.latents or source.tokens)
        if "autoencoder" in images.manifest.inputs:
            return images.input("autoencoder").entry(WEIGHTS_NAME).sha256
    return None


def _tokenizer(plan: Mixture, mixture: Artifact) -> bytes | None:
    """The model that the mixture's text was encoded with; None where its tokens were taken in as they are."""
    for source in plan.sources.values():
        tokens = mixture.input(source.tokens)
        if "tokenizer" in tokens.manifest.inputs:
            return tokens.input("tokenizer").read(MODEL)
    return None
