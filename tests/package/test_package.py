"""A package is what was put in, says what is wrong with it, and runs nothing that it holds."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import model_config, package_config, tiny_model, tiny_package
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture
from transfusion.config import validate
from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig
from transfusion.errors import ArtifactError, SpecError
from transfusion.package import STAGE
from transfusion.package import run as package_run
from transfusion.package.config import PackageStageConfig, SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.package.load import load_package
from transfusion.package.verify import package_digest, verify_package
from transfusion.sequence.layout import SequenceLayout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tiny_package(tmp_path)


def files(folder: Path) -> list[Path]:
    return sorted(place for place in folder.rglob("*") if place.is_file())


def test_weights_come_back_as_they_went_in(package: Path) -> None:
    for weights, seed in (("raw", 0), ("ema", 1)):
        loaded = load_package(package, weights=weights)
        expected = tiny_model(seed, vocab_size=loaded.config.special.vocab_size).state_dict()
        found = loaded.model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not loaded.model.training


def test_a_learned_variance_comes_back_and_is_named(tmp_path: Path) -> None:
    folder = tiny_package(tmp_path, variance="learned_range")
    loaded = load_package(folder)
    assert loaded.config.noise == NoiseConfig(variance="learned_range")
    # Eight channels go out for four that come in.
    assert loaded.model.state_dict()["up.conv_out.weight"].shape[0] == 8
    assert "predicts the noise and its variance" in (folder / "README.md").read_text()


def test_holds_the_files_that_others_read(package: Path) -> None:
    names = [place.relative_to(package).as_posix() for place in files(package)]
    assert names == [
        "README.md",
        "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "autoencoder/latent_statistics.json",
        "config.json",
        "ema.safetensors",
        "model.safetensors",
        "tokenizer.model",
    ]
    from diffusers import AutoencoderKL

    AutoencoderKL.from_pretrained(package / "autoencoder", local_files_only=True)


def test_the_layout_is_that_of_training(tmp_path: Path) -> None:
    for layout in (SequenceLayout(), SequenceLayout(clean_copies=True)):
        place = tiny_package(tmp_path / str(layout.clean_copies), layout=layout)
        assert load_package(place).config.layout == layout
    described = json.loads((tmp_path / "False/package/config.json").read_bytes())
    assert "clean_copies" not in described["layout"]


def test_the_same_inputs_give_the_same_package(tmp_path: Path) -> None:
    first, second = tiny_package(tmp_path / "a"), tiny_package(tmp_path / "b")
    assert package_digest(first) == package_digest(second)


def test_every_altered_file_is_named(package: Path) -> None:
    verify_package(package)
    for place in files(package):
        if place.name == "config.json" and place.parent == package:
            continue
        good = place.read_bytes()
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 1
        place.write_bytes(bytes(flipped))
        with pytest.raises(ArtifactError, match=place.name):
            load_package(package)
        place.write_bytes(good)
    (package / "ema.safetensors").unlink()
    (package / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ArtifactError) as caught:
        load_package(package)
    assert "ema.safetensors: is missing" in str(caught.value)
    assert "tokenizer.model: differs" in str(caught.value)


def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(package: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (package / "ran",))

    from transfusion.storage.store import sha256_file

    (package / "ema.safetensors").write_bytes(pickle.dumps(Evil()))
    config = json.loads((package / "config.json").read_text())
    config["files"]["ema.safetensors"] = sha256_file(package / "ema.safetensors")
    (package / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="does not fit"):
        load_package(package)
    assert not (package / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "transfusion.package/9"}, "format must be"),
        ({"files": {"../../etc/passwd": "0"}}, "must stay inside"),
        ({"num_pieces": 10}, "special_ids|pieces"),
        ({"surprise": 1}, "unknown key"),
        ({"latent_height": 8}, "makes latents of"),
    ],
)
def test_a_config_that_does_not_fit_says_so(package: Path, change: dict, message: str) -> None:
    config = json.loads((package / "config.json").read_text())
    (package / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ArtifactError, match=message):
        load_package(package)


def test_a_folder_that_is_none_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a model package"):
        load_package(tmp_path)


def test_stored_weights_are_plain_safetensors(package: Path) -> None:
    assert load_file(package / "ema.safetensors").keys() == tiny_model().state_dict().keys()


def test_a_package_says_its_target_only_where_it_is_not_the_noise() -> None:
    plain = package_config()
    assert not {"target", "timestep_shift"} & set(plain.resolved())
    flow = {"schedule": "straight", "target": "flow", "timestep_shift": 3.0}
    written = package_config(**flow).resolved()
    assert written | flow == written
    again, faults = validate(PackageConfig, written, where="config.json")
    assert again is not None, faults
    assert again.noise == NoiseConfig(**flow)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"target": "flow"}, "go together"),
        (
            {
                "schedule": "straight",
                "target": "flow",
                "sampling": {"solver": "ddpm", "num_inference_steps": 250},
            },
            "one of ddim, dpm",
        ),
    ],
)
def test_a_package_whose_noise_cannot_be_taken_away_is_refused(changed: dict, told: str) -> None:
    config, faults = validate(
        PackageConfig, package_config().resolved() | changed, where="config.json"
    )
    assert config is None
    assert told in faults[0]


def run_of(monkeypatch: pytest.MonkeyPatch, objective: dict) -> dict:
    """Inputs of the stage, where the run was trained with this objective."""
    planned = Mixture.model_construct(
        layout={"patch_size": 2},
        num_codes=0,
        sequence_length=64,
        latent_channels=4,
        latent_height=4,
        latent_width=4,
    )
    monkeypatch.setattr(package_run, "read_mixture", lambda _: planned)
    monkeypatch.setattr(package_run, "_check_belongs", lambda _: None)
    monkeypatch.setattr(package_run, "lineage", lambda _: [])
    inputs = {role: Mock(spec=Artifact) for role in STAGE.inputs}
    inputs["run"].manifest = SimpleNamespace(
        config={"model": model_config().resolved(), "objective": objective}
    )
    inputs["tokenizer"].metadata = {"num_pieces": 40}
    inputs["autoencoder"].metadata = {"downsampling": 4}
    return inputs


@pytest.mark.parametrize(
    ("objective", "noise"),
    [
        # As runs recorded it before there were other targets.
        ({"schedule": "linear", "num_timesteps": 900, "diffusion_weight": 5.0, "noise_limit": 500},
         NoiseConfig(schedule="linear", num_timesteps=900)),
        (ObjectiveConfig(target="v", loss_weighting="min_snr").resolved(), NoiseConfig(target="v")),
        (ObjectiveConfig(schedule="straight", target="flow", timestep_shift=2.0).resolved(),
         NoiseConfig(schedule="straight", target="flow", timestep_shift=2.0)),
        (ObjectiveConfig(variance="learned_range").resolved(), NoiseConfig(variance="learned_range")),
    ],
)  # fmt: skip
def test_a_package_learns_of_the_noise_from_its_run(
    monkeypatch: pytest.MonkeyPatch, objective: dict, noise: NoiseConfig
) -> None:
    inputs = run_of(monkeypatch, objective)
    described = package_run.describe(PackageStageConfig(), inputs, name="x")
    assert described.noise == noise


def test_a_default_solver_that_does_not_fit_the_run_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = run_of(monkeypatch, ObjectiveConfig(schedule="straight", target="flow").resolved())
    config = PackageStageConfig(sampling=SamplingDefaults(solver="ddpm", num_inference_steps=250))
    with pytest.raises(SpecError, match=r"package: sampling: solver must be one of ddim, dpm"):
        package_run.describe(config, inputs, name="x")
