"""Stage: take in an autoencoder made elsewhere, and measure its latents.

The room around it is plain torch: load, encode, decode and normalise, for autoencoders in the diffusers layout.
"""

from transfusion.autoencoder.config import LoadAutoencoderConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=LoadAutoencoderConfig,
    inputs={"images": Input(kinds=("pixels",))},
    output="autoencoder",
    body="transfusion.autoencoder.run:run",
    version=1,
    raw="transfusion.autoencoder.config:list_files",
    needs_ray=False,
    summary="An autoencoder made elsewhere, with the statistics of its latents.",
)
