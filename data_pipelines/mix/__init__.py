"""The plan of a run: which documents are in which sequence."""

from data_pipelines.mix.config import MixConfig
from transfusion.stage import ANY_ROLE, Input, Stage

STAGE = Stage(
    config=MixConfig,
    inputs={ANY_ROLE: Input(kinds=("latents", "tokens"))},
    output="mixture",
    body="data_pipelines.mix.run:run",
    version=4,
    raw="data_pipelines.mix.config:raw_input",
    check="data_pipelines.mix.config:check",
    fits="data_pipelines.fits:mixture_faults",
    needs_ray=False,
    summary="The plan of a run: which documents are in which sequence.",
)
