import inspect
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from typer.main import get_command

from transfusion import cli
from transfusion.cli import clusters, data, jobs, models, stores


def test_every_public_function_of_a_group_is_a_command() -> None:
    groups = (clusters, data, jobs, models, stores)
    written = {
        name
        for group in groups
        for name, function in inspect.getmembers(group, inspect.isfunction)
        if function.__module__ == group.__name__ and not name.startswith("_")
    }
    commands = get_command(cli.app).commands
    assert {*commands, *commands["data"].commands} == written | {"data"}


def test_the_installed_command_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="transfusion")
    assert script.load() is cli.main


@pytest.mark.parametrize("how", ["from transfusion.cli import main; main()", "-m"])
def test_help_loads_no_room_but_errors(how: str) -> None:
    told = "import sys, runpy; sys.argv = ['transfusion', '--help']\n"
    start = how if how != "-m" else "runpy.run_module('transfusion.cli', run_name='__main__')"
    code = (
        f"{told}try:\n    {start}\nexcept SystemExit: pass\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('transfusion.')}\n"
        "heavy = {'torch', 'ray', 'pydantic', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "print(sorted(rooms | heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr.strip() == "['cli', 'errors']"
