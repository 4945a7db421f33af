"""Stage: train a KL autoencoder on image crops."""

from transfusion.stage import Input, Stage
from transfusion.train.autoencoder.config import TrainAutoencoderConfig

STAGE = Stage(
    config=TrainAutoencoderConfig,
    inputs={"images": Input(kinds=("pixels",))},
    output="autoencoder",
    body="transfusion.train.autoencoder.run:run",
    version=1,
    summary="A KL autoencoder with the statistics of its latents.",
)
