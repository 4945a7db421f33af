"""The command line: `transfusion plan | run | show | sample | serve | submit | ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from transfusion.errors import SpecError, TransfusionError

app = typer.Typer(
    help="Raw images and text to a trained, evaluated and served Transfusion model, from one job file.\n\n"
    "Start with: transfusion plan jobs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

data = typer.Typer(no_args_is_help=True, help="Raw input: what a bucket or a folder holds.")
app.add_typer(data, name="data")

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


@app.command()
def plan(
    job: JobPath,
    overrides: Overrides = None,
    until: Until = None,
    profile: Profile = None,
    refresh: Refresh = False,
) -> None:
    """What would run, what is there already, and why the rest is not. Starts nothing.

    With a profile that gives rates and a price, also what it would cost.
    """
    from transfusion.runner.estimate import estimate, estimate_text
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging
    from transfusion.runner.show import plan_text
    from transfusion.spec.job import read_job
    from transfusion.spec.plan import plan_job
    from transfusion.storage.store import open_store

    if refresh:
        _list_again()
    configure_logging()
    checked = read_job(job, overrides or ())
    resources = read_profile(profile)
    store = open_store(checked.file.store)
    planned = plan_job(checked, store, until=until)
    typer.echo(plan_text(planned, store))
    if profile is not None:
        told = estimate_text(estimate(planned, store, resources), resources, where=str(profile))
        typer.echo(told, nl=bool(told))


@app.command()
def run(
    job: JobPath,
    overrides: Overrides = None,
    until: Until = None,
    profile: Profile = None,
    refresh: Refresh = False,
) -> None:
    """Make what is not there yet. Running it again finishes what was interrupted."""
    from transfusion.runner.cluster import stop_ray
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging, run_job
    from transfusion.runner.show import results_text
    from transfusion.spec.job import read_job

    if refresh:
        _list_again()
    checked = read_job(job, overrides or ())
    try:
        results = run_job(
            checked, resources=read_profile(profile), until=until, log=configure_logging()
        )
    finally:
        stop_ray()
    typer.echo(results_text(results, checked, job))


@app.command()
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
            help="Of a mixture or a run: one packed batch with ranges, timesteps and targets.",
        ),
    ] = None,
    preset: Annotated[
        bool,
        typer.Option(
            "--preset",
            help="TARGET is a model size, such as 0.76B: its parameters and FLOPs. Without a target: all sizes.",
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
        from transfusion.runner.show_batch import batch_status, batch_text, parse_place

        found = batch_status(open_address(target), *parse_place(batch))
        typer.echo(json.dumps(found, indent=2) if json_ else batch_text(found))
        return
    path = Path(target)
    status = (
        job_status(path, overrides or (), examples=examples)
        if path.suffix in {".yaml", ".yml"}
        else artifact_status(target, examples=examples)
    )
    typer.echo(json.dumps(status, indent=2) if json_ else status_text(status))


@app.command()
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


@app.command()
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="SWEEP", help="A file of arms and seeds: jobs/ablations/*.sweep.yaml."
        ),
    ],
    overrides: Overrides = None,
    profile: Profile = None,
    show_only: Annotated[
        bool, typer.Option("--show", help="The table of what is there; runs nothing.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="A Markdown file with the marks of this sweep, such as README.md."),
    ] = None,
) -> None:
    """Run a job with every override and seed of a sweep, and tell which differences are shown.

    What runs share is made once; running it again goes on where it was interrupted.

    transfusion sweep jobs/ablations/attention.sweep.yaml --profile cluster/laptop.yaml
    """
    from transfusion.runner.cluster import stop_ray
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging
    from transfusion.runner.sweep import collect, run_sweep, sweep_text, write_into
    from transfusion.spec.sweep import read_sweep

    found = read_sweep(file, tuple(overrides or ()))
    resources = read_profile(profile)
    log = configure_logging()
    if show_only:
        result = collect(found)
    else:
        try:
            result = run_sweep(found, resources=resources, log=log)
        finally:
            stop_ray()
    typer.echo(sweep_text(result))
    if into is not None:
        write_into(into, result)
    if result.failures:
        raise typer.Exit(1)


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model package, or a job file that made one.")],
    prompt: Annotated[str, typer.Option(help="What to draw, or to continue.")] = "",
    image: Annotated[Path | None, typer.Option(help="An image to describe or to edit.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is made.")] = Path("samples"),
    mode: Annotated[
        str, typer.Option(help="image, text, free (both, as the model likes), edit, or auto.")
    ] = "auto",
    solver: Annotated[str | None, typer.Option(help="ddpm, ddim, dpm++ or unipc.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is none.")] = None,
    image_guidance_scale: Annotated[
        float | None, typer.Option(help="Of the image that is edited; 1 is none.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of text; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of text.")] = None,
    max_images: Annotated[int | None, typer.Option(help="In mode free.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a prompt, describe or edit an image, or let the model go on freely. Defaults are the package's."""
    from transfusion.runner.show import model_folder
    from transfusion.sample.command import sample_to_files

    params = {
        "solver": solver,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "max_images": max_images,
        "seed": seed,
    }
    for line in sample_to_files(
        model_folder(model), prompt=prompt, image=image, out_dir=out, params=params, mode=mode
    ):
        typer.echo(line)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(help="A model package, or a job file with an endpoint.")],
    overrides: Overrides = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    profile: Profile = None,
) -> None:
    """Offer a model over HTTP until interrupted: /v1/images/generations, /v1/completions, /health."""
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging
    from transfusion.runner.serve import serve_model

    serve_model(
        model,
        overrides=overrides or (),
        host=host,
        port=port,
        resources=read_profile(profile),
        log=configure_logging(),
    )


@app.command()
def submit(
    job: JobPath,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard.")
    ] = "http://127.0.0.1:8265",
    submission_id: Annotated[
        str | None, typer.Option(help="Idempotency key; by default the job's name and fingerprint.")
    ] = None,
    until: Until = None,
    profile: Profile = None,
    retry: Annotated[
        int, typer.Option(min=0, help="A further attempt at a submission that has ended.")
    ] = 0,
) -> None:
    """Run a job on a cluster. The same submission twice runs once."""
    from transfusion.runner.submit import submit as submit_job

    typer.echo(
        submit_job(
            job,
            overrides or (),
            address=address,
            submission_id=submission_id,
            until=until,
            profile=profile,
            retry=retry,
        )
    )


@app.command()
def logs(
    submission_id: str,
    address: Annotated[str, typer.Option()] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="Keep printing until the job ends.")] = False,
) -> None:
    """What a submitted job printed."""
    from transfusion.runner.submit import logs as job_logs

    for text in job_logs(submission_id, address=address, follow=follow):
        typer.echo(text, nl=False)


@app.command()
def cancel(
    submission_id: str, address: Annotated[str, typer.Option()] = "http://127.0.0.1:8265"
) -> None:
    """Stop a submitted job. What it finished stays, and submitting again goes on from there."""
    from transfusion.runner.submit import cancel as cancel_job

    typer.echo(cancel_job(submission_id, address=address))


@app.command()
def render(
    job: JobPath,
    overrides: Overrides = None,
    target: Annotated[str, typer.Option(help="rayjob, rayservice or ray-up.")] = "rayjob",
    profile: Profile = None,
) -> None:
    """Print the cluster file for a job; contacts nothing."""
    from transfusion.runner.profile import read_profile
    from transfusion.runner.render import render as render_target
    from transfusion.spec.job import read_job

    typer.echo(
        render_target(
            read_job(job, overrides or ()), target=target, resources=read_profile(profile)
        ),
        nl=False,
    )


@app.command()
def schema() -> None:
    """JSON Schema of a job file, for editors."""
    from transfusion.spec.schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))


@app.command()
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


@data.command()
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
        _list_again()
    load_function("data_pipelines.inspect.command:inspect")(
        path,
        source=source,
        changes=changes or (),
        num_rows=rows,
        num_examples=examples,
        out=out,
    )


def _list_again() -> None:
    """Has what lists raw input in this process pass over listings that are older than now."""
    import os
    import time

    os.environ["TRANSFUSION_LISTED_AFTER"] = str(time.time())


def main() -> None:
    """Runs the command line; a user's mistake is printed without a traceback."""
    try:
        app()
    except TransfusionError as error:
        for line in str(error).splitlines():
            typer.echo(line, err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
