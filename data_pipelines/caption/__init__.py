"""What a model says of the images of a listing."""

from data_pipelines.caption.config import CaptionConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=CaptionConfig,
    inputs={
        "images": Input(kinds=("listing",)),
        "model": Input(kinds=("model",)),
    },
    output="captions",
    body="data_pipelines.caption.run:run",
    version=1,
    summary="What a model says of the images of a listing, for the next mix.",
)
