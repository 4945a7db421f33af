"""Commands on what a store holds: shown, compared, and cleared of what nothing reaches."""

import json
from pathlib import Path
from typing import Annotated

import typer

from transfusion.cli.options import Json, Overrides
from transfusion.errors import SpecError


def show(
    target: Annotated[
        str | None, typer.Argument(help="A job file, or the folder of an artifact.")
    ] = None,
    overrides: Overrides = None,
    json_: Json = False,
    examples: Annotated[
        int, typer.Option(min=0, help="Of a mixture: print so many packed sequences, decoded.")
    ] = 0,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="STEP[:LANE]",
            help="Of a job, a mixture or a run: one packed batch with ranges, timesteps and targets.",
        ),
    ] = None,
    preset: Annotated[
        bool,
        typer.Option(
            "--preset",
            help="TARGET is a model size, such as 0.76B, or an autoencoder: parameters and FLOPs. Without: all.",
        ),
    ] = False,
    patch: Annotated[int | None, typer.Option(help="Of the preset: 1, 2, 4 or 8.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Of the preset: linear or unet.")] = None,
) -> None:
    """Status, counts, metrics and lineage, from the store alone; works with no cluster.

    Of a mixture also shares, epochs, padding and how its sequences are filled.

    transfusion show --preset

    transfusion show --preset 0.76B --patch 4 --adapter unet
    """
    if preset:
        from transfusion.runner.show_preset import preset_status, preset_text

        if overrides or batch is not None or examples:
            raise SpecError(
                "show --preset: takes --patch and --adapter; overrides, --batch and --examples are of jobs and "
                "artifacts"
            )
        found = preset_status(target, patch_size=patch, adapter=adapter)
        typer.echo(json.dumps(found, indent=2) if json_ else preset_text(found))
        return
    if target is None:
        raise SpecError("show: give a job file or the folder of an artifact, or --preset")
    if patch is not None or adapter is not None:
        raise SpecError("show: --patch and --adapter are of model sizes: give --preset as well")
    from transfusion.runner.show import artifact_status, job_status, status_text

    if batch is not None:
        from transfusion.runner.show import open_address
        from transfusion.runner.show_batch import batch_status, batch_text, job_batch, parse_place

        place = parse_place(batch)
        found = (
            job_batch(Path(target), overrides or (), *place)
            if Path(target).suffix in {".yaml", ".yml"}
            else batch_status(open_address(target), *place)
        )
        typer.echo(json.dumps(found, indent=2) if json_ else batch_text(found))
        return
    path = Path(target)
    status = (
        job_status(path, overrides or (), examples=examples)
        if path.suffix in {".yaml", ".yml"}
        else artifact_status(target, examples=examples)
    )
    typer.echo(json.dumps(status, indent=2) if json_ else status_text(status))


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Job files, each with its overrides in the same quotes, or folders of artifacts.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write a page with the curves, such as compare.html.")
    ] = None,
) -> None:
    """What was set differently in two runs or more, what they scored, and how they learned.

    transfusion compare jobs/x.yaml "jobs/x.yaml stages.train.config.lr=5e-4" --out compare.html
    """
    from transfusion.runner.compare import compare_runs

    typer.echo(compare_runs(runs, out=out))


def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="JOB|ARTIFACT",
            help="A job file, or the address of generated images: STORE/data_pipelines.generate/FINGERPRINT.",
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option(help="An empty folder, or that of an export that was killed.")
    ] = Path("export"),
    layout: Annotated[
        str,
        typer.Option(
            help="geneval: what GenEval's scorer reads; parquet: what the source parquet_images reads."
        ),
    ] = "geneval",
    stage: Annotated[
        str | None,
        typer.Option(help="Which stage's, of a job that generates images in several."),
    ] = None,
) -> None:
    """Generated images as files that other programs read.

    transfusion export jobs/x.yaml --out drawn
    """
    from transfusion.runner.export import export_images

    typer.echo(
        export_images(target, out=out, layout=layout, stage=stage, overrides=overrides or ())
    )


def gc(
    store: Annotated[str, typer.Argument(help="A store: a folder or s3://bucket/prefix.")],
    older_than_hours: Annotated[
        float,
        typer.Option(
            min=0.0, help="Spare folders with anything younger: a run may be at work there."
        ),
    ] = 24.0,
    delete: Annotated[
        bool, typer.Option(help="Delete it; without this it is only listed.")
    ] = False,
) -> None:
    """What no manifest reaches."""
    from transfusion.runner.gc import collect_garbage

    for line in collect_garbage(store, older_than_hours=older_than_hours, delete=delete):
        typer.echo(line)
