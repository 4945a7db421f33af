"""Pictures that a model draws of the prompts of a listing."""

from data_pipelines.generate.config import GenerateConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=GenerateConfig,
    inputs={
        "prompts": Input(kinds=("listing",)),
        "model": Input(kinds=("model",)),
    },
    output="images",
    body="data_pipelines.generate.run:run",
    fits="data_pipelines.generate.config:faults",
    version=1,
    summary="Pictures that a model draws of the prompts of a listing.",
)
