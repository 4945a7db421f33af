"""The images of a listing to latents."""

from data_pipelines.encode_images.config import EncodeImagesConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=EncodeImagesConfig,
    inputs={
        "images": Input(kinds=("listing",)),
        "autoencoder": Input(kinds=("autoencoder",)),
    },
    output="latents",
    body="data_pipelines.encode_images.run:run",
    fits="data_pipelines.fits:encoding_faults",
    version=2,
    summary="The images of a listing to latents.",
)
