"""Commands on job files: what would run, run it, run it over arms and seeds, the keys it may have."""

import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from transfusion.cli.options import JobPath, Overrides, Profile, Refresh, Until, list_again


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
    from transfusion.runner.run import check_workers, configure_logging
    from transfusion.runner.show import plan_text
    from transfusion.spec.job import read_job
    from transfusion.spec.plan import plan_job
    from transfusion.storage.store import open_store

    if refresh:
        list_again()
    configure_logging()
    checked = read_job(job, overrides or ())
    resources = read_profile(profile)
    store = open_store(checked.file.store)
    planned = plan_job(checked, store, until=until)
    if profile is not None:
        check_workers(planned, resources)
    typer.echo(plan_text(planned, store))
    if profile is not None:
        told = estimate_text(estimate(planned, store, resources), resources, where=str(profile))
        typer.echo(told, nl=bool(told))


def run(
    job: JobPath,
    overrides: Overrides = None,
    until: Until = None,
    profile: Profile = None,
    refresh: Refresh = False,
) -> None:
    """Make what is not there yet. Running it again finishes what was interrupted."""
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging, run_job
    from transfusion.runner.show import results_text
    from transfusion.spec.job import read_job

    if refresh:
        list_again()
    checked = read_job(job, overrides or ())
    log = configure_logging()
    with _interruptible(log):
        results = run_job(checked, resources=read_profile(profile), until=until, log=log)
    typer.echo(results_text(results, checked, job, overrides or ()))


@contextmanager
def _interruptible(log: logging.Logger) -> Iterator[None]:
    """Work that Ctrl-C and SIGTERM end with a word of what is kept; Ray is left, however it ends."""
    from transfusion.runner.cluster import stop_ray, take_sigterm

    take_sigterm()
    try:
        yield
    except KeyboardInterrupt:
        log.info(
            "interrupted: what is finished is kept, single shards and checkpoints too; the same command goes on "
            "from there"
        )
        raise typer.Exit(128 + signal.SIGINT) from None
    finally:
        stop_ray()


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
    plan_only: Annotated[
        bool,
        typer.Option("--plan", help="What each run would make, and with a profile its cost."),
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(help="A Markdown file with the marks of this sweep, such as README.md."),
    ] = None,
) -> None:
    """Run a job with every override and seed of a sweep, and tell which differences are shown.

    What runs share is made once; running it again goes on where it was interrupted.

    transfusion sweep jobs/ablations/attention.sweep.yaml --profile cluster/laptop.yaml

    Paths of data, as of any job: transfusion sweep jobs/paper/sizes.sweep.yaml --plan
    stages.images.config.path='s3://BUCKET/pairs/*.tar' ...
    """
    from transfusion.errors import SpecError
    from transfusion.runner.estimate import estimate_text
    from transfusion.runner.profile import read_profile
    from transfusion.runner.run import configure_logging
    from transfusion.runner.sweep import (
        collect,
        plan_sweep,
        run_sweep,
        sweep_text,
        write_into,
    )
    from transfusion.spec.sweep import read_sweep

    if plan_only and (show_only or into is not None):
        raise SpecError("--plan: tells what would be made, without the table of --show and --into")
    found = read_sweep(file, tuple(overrides or ()))
    resources = read_profile(profile)
    log = configure_logging()
    if plan_only:
        told, estimates = plan_sweep(found, resources)
        typer.echo(told)
        if profile is not None:
            cost = estimate_text(estimates, resources, where=str(profile))
            typer.echo(cost, nl=bool(cost))
        return
    if show_only:
        result = collect(found)
    else:
        with _interruptible(log):
            result = run_sweep(found, resources=resources, log=log)
    typer.echo(sweep_text(result))
    if into is not None:
        write_into(into, result)
    if result.failures:
        raise typer.Exit(1)


def schema() -> None:
    """JSON Schema of a job file, for editors."""
    from transfusion.spec.schema import job_schema

    typer.echo(json.dumps(job_schema(), indent=2))
