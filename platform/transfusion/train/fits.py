"""Whether a model can be trained on a plan: asked of a job file before anything is made, and of the plan itself.

No torch.
"""

from collections.abc import Mapping
from typing import Any

from transfusion.artifacts.mixture import Mixture
from transfusion.stage import Upstream
from transfusion.train.config import TrainConfig
from transfusion.train.init_from import ROLE, package_faults


def faults(config: TrainConfig, inputs: Mapping[str, Upstream]) -> list[str]:
    """What does not fit between training and the mixture of its job, as `.field: rule`."""
    mixture = inputs["mixture"]
    planned = mixture.config.resolved()
    # Of what was made with an autoencoder latents have no text, and text no latents: such tokens are codes.
    codes = any(
        source["latents"] is None and "autoencoder" in mixture.inputs[source["tokens"]].inputs
        for source in planned["sources"].values()
    )
    found = _faults(
        config,
        steps=planned["num_steps"],
        layout=planned["layout"],
        has_codes=codes,
        has_latents=any(source["latents"] for source in planned["sources"].values()),
    )
    start = inputs.get(ROLE)
    before = start.inputs.get("run") if start and start.uses == "transfusion.package" else None
    if before is not None and isinstance(before.config, TrainConfig):
        found += package_faults(config, before.config.model)
    return found


def plan_faults(config: TrainConfig, plan: Mixture) -> list[str]:
    """The same of a mixture that is made, which may have ended before the steps that it was asked for."""
    return _faults(
        config,
        steps=plan.steps,
        layout=plan.layout,
        has_codes=plan.num_codes > 0,
        has_latents=any(source.latents is not None for source in plan.sources.values()),
    )


def _faults(
    config: TrainConfig,
    *,
    steps: int,
    layout: Mapping[str, Any],
    has_codes: bool,
    has_latents: bool,
) -> list[str]:
    found = []
    if config.steps > steps and not config.repeat_first_step:
        found.append(
            f".steps: is {config.steps} but the mixture plans {steps}: raise the mixture's num_steps (what is "
            "planned already stays as it is), or lower these"
        )
    patch_size = layout["patch_size"]
    if config.model.patch_size != patch_size:
        found.append(
            f".model.patch_size: is {config.model.patch_size} but the mixture was packed for {patch_size}: "
            "they must be equal"
        )
    time_token = bool(layout.get("time_token"))
    if config.model.time_token != time_token:
        found.append(
            f".model.time_embedding: is {config.model.time_embedding!r} but the mixture was packed with "
            f"time_token {str(time_token).lower()}: 'token' needs layout.time_token: true, and nothing else does"
        )
    if config.preview_every_steps and not (has_codes or has_latents):
        found.append(
            f".preview_every_steps: is {config.preview_every_steps} but no source of the mixture has images to "
            "draw: set it to 0"
        )
    if config.model.weights == "by_modality" and not has_latents:
        found.append(
            ".model.weights: is 'by_modality' but no source of the mixture has latents, and codes are words to a "
            "model: weights of patches would never be trained; leave it out"
        )
    return found
