"""Text and images of a listing to token ids."""

from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=TokenizeImagesConfig,
    inputs={
        "documents": Input(kinds=("listing",)),
        "tokenizer": Input(kinds=("tokenizer",)),
        "autoencoder": Input(kinds=("autoencoder",)),
        "captions": Input(kinds=("captions",), required=False),
    },
    output="tokens",
    body="data_pipelines.tokenize_images.run:run",
    fits="data_pipelines.fits:encoding_faults",
    version=1,
    summary="Text and images of a listing to token ids, images by an autoencoder's codebook.",
)
