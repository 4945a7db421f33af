"""The model package: one directory that `sample`, `evaluate` and `serve` need, and nothing else."""

from transfusion.package.config import PackageStageConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=PackageStageConfig,
    inputs={
        "run": Input(kinds=("run",)),
        "tokenizer": Input(kinds=("tokenizer",)),
        "autoencoder": Input(kinds=("autoencoder",)),
        "mixture": Input(kinds=("mixture",)),
    },
    output="model",
    body="transfusion.package.run:run",
    fits="transfusion.package.config:faults",
    version=1,
    needs_ray=False,
    summary="Weights, tokenizer, autoencoder and lineage in one directory",
)
