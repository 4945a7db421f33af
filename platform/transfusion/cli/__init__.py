"""The command line: `transfusion plan | run | show | sample | serve | submit | ...`.

One module a group of commands. A command imports what it needs when it is called, so that help costs nothing and a
plan loads neither torch nor Ray.
"""

import sys

import typer

from transfusion.cli import clusters, data, jobs, models, stores
from transfusion.errors import TransfusionError

app = typer.Typer(
    help="Raw images and text to a trained, evaluated and served Transfusion model, from one job file.\n\n"
    "Start with: transfusion plan jobs/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

# In the order of the help.
for command in (
    jobs.plan,
    jobs.run,
    stores.show,
    stores.compare,
    stores.export,
    jobs.sweep,
    models.sample,
    models.serve,
    clusters.submit,
    clusters.logs,
    clusters.cancel,
    clusters.render,
    jobs.schema,
    stores.gc,
):
    app.command()(command)

_data = typer.Typer(no_args_is_help=True, help="Raw input: what a bucket or a folder holds.")
_data.command()(data.inspect)
app.add_typer(_data, name="data")


def main() -> None:
    """Runs the command line; a user's mistake is printed without a traceback."""
    try:
        app()
    except TransfusionError as error:
        for line in str(error).splitlines():
            typer.echo(line, err=True)
        sys.exit(error.exit_code)
