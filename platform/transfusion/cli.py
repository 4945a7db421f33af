"""The command line: `transfusion plan | run | show | sample | serve | submit | ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from transfusion.errors import TransfusionError

app = typer.Typer(
    help="Raw images and text to a trained, evaluated and served Transfusion model, from one job file.\n\n"
    "Start with: transfusion plan jobs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

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
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@app.command()
def plan(job: JobPath, overrides: Overrides = None, until: Until = None) -> None:
    """What would run, what is there already, and why the rest is not. Starts nothing."""
    from transfusion.runner.show import plan_text
    from transfusion.spec.job import read_job
    from transfusion.spec.plan import plan_job
    from transfusion.storage.store import open_store

    checked = read_job(job, overrides or ())
    store = open_store(checked.file.store)
    typer.echo(plan_text(plan_job(checked, store, until=until), store))


@app.command()
def run(
    job: JobPath, overrides: Overrides = None, until: Until = None, profile: Profile = None
) -> None:
    """Make what is not there yet. Running it again finishes what was interrupted."""
    from transfusion.runner.cluster import stop_ray
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging, run_job
    from transfusion.runner.show import results_text
    from transfusion.spec.job import read_job

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
    target: Annotated[str, typer.Argument(help="A job file, or the folder of an artifact.")],
    overrides: Overrides = None,
    json_: Json = False,
) -> None:
    """Status, counts, metrics and lineage, from the store alone; works with no cluster."""
    from transfusion.runner.show import artifact_status, job_status, status_text

    path = Path(target)
    status = (
        job_status(path, overrides or ())
        if path.suffix in {".yaml", ".yml"}
        else artifact_status(target)
    )
    typer.echo(json.dumps(status, indent=2) if json_ else status_text(status))


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(help="A model package, or a job file that made one.")],
    prompt: Annotated[str, typer.Option(help="What to draw, or to continue.")] = "",
    image: Annotated[Path | None, typer.Option(help="An image to describe.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for what is made.")] = Path("samples"),
    mode: Annotated[
        str, typer.Option(help="image, text, free (both, as the model likes), or auto.")
    ] = "auto",
    solver: Annotated[str | None, typer.Option(help="ddpm, ddim, dpm++ or unipc.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1 is none.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of text; 0 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of text.")] = None,
    max_images: Annotated[int | None, typer.Option(help="In mode free.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a prompt, describe an image, or let the model go on freely. Defaults are the package's."""
    from transfusion.runner.show import model_folder
    from transfusion.sample.command import sample_to_files

    params = {
        "solver": solver,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
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
        float, typer.Option(min=0.0, help="Spare what is younger: a run may be writing it.")
    ] = 24.0,
    delete: Annotated[
        bool, typer.Option(help="Delete it; without this it is only listed.")
    ] = False,
) -> None:
    """What no manifest reaches."""
    from transfusion.runner.gc import collect_garbage

    for line in collect_garbage(store, older_than_hours=older_than_hours, delete=delete):
        typer.echo(line)


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
