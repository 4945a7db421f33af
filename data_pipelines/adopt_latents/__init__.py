"""Latents that were made elsewhere, taken in after a check."""

from data_pipelines.adopt_latents.config import AdoptLatentsConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=AdoptLatentsConfig,
    inputs={
        "latents": Input(kinds=("listing",)),
        "autoencoder": Input(kinds=("autoencoder",)),
    },
    output="latents",
    body="data_pipelines.adopt_latents.run:run",
    version=1,
    summary="Latents that were made elsewhere, taken in after a check.",
)
