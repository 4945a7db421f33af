"""Arguments and options that several commands take."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

JobPath = Annotated[
    Path, typer.Argument(metavar="JOB", help="A job file, such as jobs/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides: stages.train.config.steps=100 store=s3://bucket/x",
    ),
]
Until = Annotated[str | None, typer.Option(help="Stop after this stage.", metavar="STAGE")]
Profile = Annotated[
    Path | None, typer.Option(help="Resources: a file of cluster/, such as cluster/laptop.yaml.")
]
Refresh = Annotated[
    bool,
    typer.Option(
        "--refresh",
        help="List raw input on S3 again. A listing is the snapshot that a job works on, kept in ~/.cache: "
        "without this, files added since are not seen, and one that has changed is an error when it is read.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


def list_again() -> None:
    """Has what lists raw input in this process pass over listings that are older than now."""
    os.environ["TRANSFUSION_LISTED_AFTER"] = str(time.time())
