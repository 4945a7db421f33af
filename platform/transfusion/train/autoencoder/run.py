"""Body of the stage: a Ray Train job, then the artifact's files."""

from collections.abc import Mapping

from transfusion.artifacts.artifact import Artifact
from transfusion.stage import Made, StageContext
from transfusion.train.autoencoder.config import TrainAutoencoderConfig, raw_input
from transfusion.train.on_ray.worker import train_on_ray


def run(
    config: TrainAutoencoderConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Made:
    """Trains the autoencoder and measures its latents."""
    context.check_raw(raw_input(config), what="perceptual.path: the weights")
    return train_on_ray(
        "transfusion.train.autoencoder.trainee:build",
        config.resolved(),
        inputs,
        context,
        steps=config.steps,
        lanes=config.lanes,
    )
