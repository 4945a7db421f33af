"""Commands on a cluster: submit a job, follow it, stop it, print its file."""

from typing import Annotated

import typer

from transfusion.cli.options import JobPath, Overrides, Profile, Until


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


def logs(
    submission_id: str,
    address: Annotated[str, typer.Option()] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option(help="Keep printing until the job ends.")] = False,
) -> None:
    """What a submitted job printed."""
    from transfusion.runner.submit import logs as job_logs

    for text in job_logs(submission_id, address=address, follow=follow):
        typer.echo(text, nl=False)


def cancel(
    submission_id: str, address: Annotated[str, typer.Option()] = "http://127.0.0.1:8265"
) -> None:
    """Stop a submitted job. What it finished stays, and submitting again goes on from there."""
    from transfusion.runner.submit import cancel as cancel_job

    typer.echo(cancel_job(submission_id, address=address))


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
