"""Stage: train the transformer on a mixture."""

from transfusion.stage import Input, Stage
from transfusion.train.config import TrainConfig

STAGE = Stage(
    config=TrainConfig,
    inputs={
        "mixture": Input(kinds=("mixture",)),
        "init_from": Input(kinds=("model", "llama"), required=False),
    },
    output="run",
    body="transfusion.train.run:run",
    version=3,
    raw="transfusion.train.init_from:list_files",
    check="transfusion.train.init_from:faults",
    fits="transfusion.train.fits:faults",
    summary="Weights, raw and averaged, and the metrics of every step.",
)
