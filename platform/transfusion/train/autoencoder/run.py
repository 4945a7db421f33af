"""Body of the stage: a Ray Train job, then the artifact's files."""

from collections.abc import Mapping

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.canonical import fingerprint
from transfusion.errors import ArtifactError
from transfusion.stage import Made, StageContext
from transfusion.train.autoencoder.config import TrainAutoencoderConfig, raw_input
from transfusion.train.worker import train_on_ray


def run(
    config: TrainAutoencoderConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Made:
    """Trains the autoencoder and measures its latents."""
    listed = raw_input(config)
    if listed is not None and context.raw not in (None, fingerprint(listed)):
        raise ArtifactError(
            f"{context.name}: perceptual.path: the weights have changed since the job was planned; run it again"
        )
    outcome = train_on_ray(
        "transfusion.train.autoencoder.trainee:build",
        config.resolved(),
        inputs,
        context,
        steps=config.steps,
    )
    return Made(
        files=outcome.files,
        metadata=outcome.metadata,
        metrics=outcome.metrics,
        timings=outcome.timings,
    )
