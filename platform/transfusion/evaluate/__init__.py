"""Metrics over samples and held-out data."""

from transfusion.evaluate.config import EvaluateConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=EvaluateConfig,
    inputs={
        "model": Input(kinds=("model",)),
        "mixture": Input(kinds=("mixture",)),
        "pixels": Input(kinds=("pixels",), required=False),
    },
    output="evaluation",
    body="transfusion.evaluate.run:run",
    fits="transfusion.evaluate.config:faults",
    version=1,
    needs_ray=False,
    summary="Scores of generated images, captions and text, beside what the autoencoder allows",
)
