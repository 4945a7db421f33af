"""`transfusion show --preset`: what is printed is what the formulas give, without torch."""

import json
import subprocess
import sys

import pytest
import yaml
from typer.testing import CliRunner

from transfusion.autoencoder.presets import PRESETS as AUTOENCODERS
from transfusion.cli import app
from transfusion.errors import SpecError
from transfusion.model.config import ModelConfig
from transfusion.model.presets import NAMES, PRESETS, adapters, preset


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_sizes_come_with_both_adapters_at_the_patch_that_was_asked_for() -> None:
    shown = json.loads(show("--preset", "--patch", "4", "--json"))["presets"]
    assert [(row["name"], row["adapter"]) for row in shown] == [
        (name, adapter)
        for adapter in ("linear", "unet")
        for name in NAMES
        if adapter in adapters(name)
    ]
    for row in shown:
        config = ModelConfig.model_validate_json(json.dumps(row["model"]))
        assert config == preset(row["name"], patch_size=4, adapter=row["adapter"])
        assert row["image_tokens"] == 64
        parameters, flops = row["parameters"], row["training_flops_per_token"]
        assert parameters["total"] == parameters["transformer"] + parameters["adapter"]
        assert flops["causal"] < flops["bidirectional"]
    assert shown[4]["parameters"]["transformer"] == 6_738_456_576


def test_one_size_comes_with_its_parts_which_add_up() -> None:
    (row,) = json.loads(show("--preset", "0.76B", "--adapter", "unet", "--json"))["presets"]
    parts = row["parts"]
    assert sum(part["parameters"] for part in parts) == row["parameters"]["total"]
    assert sum(part["training_flops_per_token"] for part in parts) == pytest.approx(
        row["training_flops_per_token"]["bidirectional"]
    )
    assert len({part["name"] for part in parts}) == len(parts)


def test_the_table_holds_the_figures_and_a_model_for_a_job() -> None:
    text = show("--preset", "7B")
    row = next(words for line in text.splitlines() if (words := line.split())[:1] == ["7B"])
    assert row[:7] == ["7B", "linear", "2", "4,096", "32", "32", "11,008"]
    assert row[7:9] == ["6,738.7", "M"]
    line = next(line for line in text.splitlines() if "model: {" in line)
    model = yaml.safe_load(line.partition("in a job:")[2])["model"]
    assert ModelConfig(**model) == PRESETS["7B"]
    table = show("--preset")
    assert "…" not in table
    rows = [line.split()[:2] for line in table.splitlines() if line]
    assert ["MonoFormer-1.1B", "linear"] in rows
    assert [row[0] for row in rows if row[1:] == ["unet"]] == [n for n in NAMES if n[:4] != "Mono"]


def test_a_small_size_of_ours_adds_up_with_its_gains_of_time() -> None:
    (row,) = json.loads(show("--preset", "quickstart", "--json"))["presets"]
    assert "skip.gains" in {part["name"] for part in row["parts"]}
    assert sum(part["parameters"] for part in row["parts"]) == row["parameters"]["total"]


def test_an_autoencoder_comes_with_its_size_and_the_network_of_a_job(repository) -> None:
    from transfusion.spec.job import read_job

    text = show("--preset", "vq-f8-86M")
    assert ["vq-f8-86M", "8", "x", "8", "8", "16,384", "83.8", "M"] in [
        line.split() for line in text.splitlines()
    ]
    line = next(line for line in text.splitlines() if "network: {" in line)
    network = yaml.safe_load(line.partition("in a job:")[2])
    told = [f"stages.autoencoder.config.network={json.dumps(network['network'])}"]
    file = repository / "jobs/paper/autoencoder.yaml"
    for overrides, name in ((), "kl-f8-86M"), (told, "vq-f8-86M"):
        stages = {stage.name: stage.config for stage in read_job(file, overrides).stages}
        assert stages["autoencoder"].network == AUTOENCODERS[name]
    both = json.loads(show("--preset", "--json"))["autoencoders"]
    assert {row["name"]: row["parameters"] for row in both} == {
        "kl-f8-86M": 83_709_419,
        "vq-f8-86M": 83_803_419,
    }
    assert "kl-f8-86M" in show("--preset")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "0.67B"), "there is no '0.67B'; did you mean '0.76B'"),
        (("--preset", "--adapter", "ulet"), "--adapter: there is no 'ulet'; did you mean 'unet'"),
        (("--preset", "7B", "--patch", "5"), "patch must be one of 1, 2, 4, 8, got 5"),
        (("jobs/quickstart.yaml", "--patch", "2"), "give --preset as well"),
        (("--preset", "MonoFormer-1.1B", "--adapter", "unet"), "leave the adapter out"),
        (("--preset", "kl-f8-87M"), "there is no 'kl-f8-87M'; did you mean 'kl-f8-86M'"),
        (("--preset", "kl-f8-86M", "--patch", "2"), "is an autoencoder"),
        (("--preset", "7B", "model.adapter=unet"), "overrides, --batch and --examples are of jobs"),
        (("--preset", "7B", "--batch", "0"), "overrides, --batch and --examples are of jobs"),
        ((), "give a job file or the folder of an artifact, or --preset"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["show", *arguments])
    assert isinstance(result.exception, SpecError)
    assert words in str(result.exception)


def test_torch_is_not_needed() -> None:
    code = (
        "import sys; from transfusion.cli import main; sys.argv = ['transfusion', 'show', '--preset']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
