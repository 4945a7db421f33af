"""Commands on raw input."""

from pathlib import Path
from typing import Annotated

import typer

from transfusion.cli.options import Refresh, list_again


def inspect(
    path: Annotated[
        str, typer.Argument(help="A folder, a file or a pattern, on disk or s3://bucket/prefix.")
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="SOURCE",
            help="Read it as this source instead of the one guessed: webdataset, parquet_images, image_folder, "
            "interleaved, edits or text.",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A value of the source's config: caption_column=title.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are read and decoded.")] = 1000,
    examples: Annotated[int, typer.Option(min=0, help="Documents that are printed.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for contact_sheet.png.")] = Path("inspect"),
    refresh: Refresh = False,
) -> None:
    """What raw input holds, and how a job would read it. Starts nothing.

    Prints the format and what speaks for it, the columns, and the stage to write into a job.

    Reads a sample: what is rejected and why, a few documents, a contact sheet of their images.

    Lists all files and reads only a few of them: seconds, also on a bucket.

    transfusion data inspect s3://bucket/laion

    transfusion data inspect table.parquet --as parquet_images --set caption_column=title
    """
    from transfusion.spec.stages import load_function

    if refresh:
        list_again()
    load_function("data_pipelines.inspect.command:inspect")(
        path,
        source=source,
        changes=changes or (),
        num_rows=rows,
        num_examples=examples,
        out=out,
    )
