"""The report: one self-contained HTML file on a run, from scores and samples down to the source files."""

from transfusion.report.config import ReportConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=ReportConfig,
    inputs={
        "run": Input(kinds=("run",)),
        "evaluation": Input(kinds=("evaluation",)),
        "model": Input(kinds=("model",)),
        "mixture": Input(kinds=("mixture",)),
        "autoencoder": Input(kinds=("autoencoder",), required=False),
    },
    output="report",
    body="transfusion.report.run:run",
    version=1,
    needs_ray=False,
    summary="One HTML file: scores, samples, curves, mixture, time, rejects, lineage",
)
