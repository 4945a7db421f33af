"""Stage: train the transformer on a mixture."""

from transfusion.stage import Input, Stage
from transfusion.train.config import TrainConfig

STAGE = Stage(
    config=TrainConfig,
    inputs={"mixture": Input(kinds=("mixture",))},
    output="run",
    body="transfusion.train.run:run",
    version=1,
    summary="Weights, raw and averaged, and the metrics of every step.",
)
