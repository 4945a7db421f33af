"""A bounded sample of a listing's images as decoded square crops."""

from data_pipelines.pixels.config import PixelsConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=PixelsConfig,
    inputs={"images": Input(kinds=("listing",))},
    output="pixels",
    body="data_pipelines.pixels.run:run",
    version=1,
    summary="A sample of images as decoded crops: to train an autoencoder, to calibrate, to compare with.",
)
