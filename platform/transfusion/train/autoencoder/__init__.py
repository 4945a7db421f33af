"""Stage: train an autoencoder on image crops."""

from transfusion.stage import Input, Stage
from transfusion.train.autoencoder.config import TrainAutoencoderConfig

STAGE = Stage(
    config=TrainAutoencoderConfig,
    inputs={"images": Input(kinds=("pixels",))},
    output="autoencoder",
    raw="transfusion.train.autoencoder.config:raw_input",
    body="transfusion.train.autoencoder.run:run",
    version=1,
    summary="An autoencoder, KL or with a codebook, with the statistics of its latents.",
)
