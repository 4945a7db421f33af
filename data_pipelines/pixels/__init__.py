"""Decoded images, to train an autoencoder on and to compare with."""

from data_pipelines.pixels.config import PixelsConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=PixelsConfig,
    inputs={"images": Input(kinds=("listing",))},
    output="pixels",
    body="data_pipelines.pixels.run:run",
    version=2,
    summary="Decoded images, to train an autoencoder on and to compare with.",
)
