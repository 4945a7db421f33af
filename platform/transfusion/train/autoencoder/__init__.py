"""Stage: train a KL autoencoder on image crops, or take a trained one and measure its latents."""

from transfusion.stage import Input, Stage
from transfusion.train.autoencoder.config import TrainAutoencoderConfig

STAGE = Stage(
    config=TrainAutoencoderConfig,
    inputs={"images": Input(kinds=("pixels",))},
    output="autoencoder",
    body="transfusion.train.autoencoder.run:run",
    version=1,
    raw="transfusion.train.autoencoder.config:list_pretrained",
    summary="A KL autoencoder with the statistics of its latents.",
)
