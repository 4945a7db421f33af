"""The mean of models is computed by hand here, and models that are not alike have none."""

import logging
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from tests.tiny import QUICK, tiny_model, tiny_package
from transfusion.artifacts.artifact import Artifact
from transfusion.config import validate
from transfusion.errors import ArtifactError
from transfusion.package import average_write
from transfusion.package.average import STAGE, AverageConfig, check
from transfusion.package.average_write import MeanTensors, average_packages
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import WEIGHT_FILES, read_config
from transfusion.package.load import load_package
from transfusion.package.run import lineage
from transfusion.package.verify import package_digest, verify_package
from transfusion.package.write import write_package
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.stage import StageContext
from transfusion.storage.store import open_store, sha256_file


def rewrite(folder: Path, out: Path, *, weights: dict, **changed) -> Path:
    """A package with other weights or another config."""
    write_package(
        out,
        config=verify_package(folder).model_copy(update=changed),
        weights=weights,
        tokenizer=(folder / "tokenizer.model").read_bytes(),
        autoencoder=folder / "autoencoder",
    )
    return out


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models that differ in all weights."""
    folder = tmp_path_factory.mktemp("packages")
    first = tiny_package(folder)
    vocab_size = load_package(first).config.special.vocab_size
    found = {"a": first}
    for number, role in enumerate("bc", start=1):
        raw, ema = (
            tiny_model(10 * number + seed, vocab_size=vocab_size).state_dict() for seed in (0, 1)
        )
        found[role] = rewrite(first, folder / role, weights={"raw": raw, "ema": ema})
    return found


@pytest.mark.parametrize("shares", [{}, {"a": 1.0, "b": 0.5, "c": 2.5}])
def test_every_weight_is_the_mean_of_those_of_the_models(packages, tmp_path, shares) -> None:
    average_packages(tmp_path / "mean", packages, AverageConfig(shares=shares), name="mean")
    divided = {role: shares.get(role, 1.0) / (4 if shares else 3) for role in packages}
    for file in WEIGHT_FILES.values():
        mean = load_file(tmp_path / "mean" / file)
        parts = {role: load_file(place / file) for role, place in packages.items()}
        assert mean.keys() == parts["a"].keys()
        for name, tensor in mean.items():
            by_hand = sum(divided[role] * parts[role][name].numpy().astype("f8") for role in parts)
            assert tensor.dtype == torch.float32
            # One rounding, to fp32.
            torch.testing.assert_close(
                tensor, torch.from_numpy(by_hand).float(), rtol=2e-7, atol=1e-12
            )


def test_the_mean_of_a_model_with_itself_is_that_model(packages, tmp_path) -> None:
    twice = {"one": packages["a"], "other": packages["a"]}
    average_packages(tmp_path / "mean", twice, AverageConfig(), name="tiny", lineage=[])
    assert package_digest(tmp_path / "mean") == package_digest(packages["a"])


def test_the_mean_draws_and_writes(packages, tmp_path) -> None:
    average_packages(tmp_path / "mean", packages, AverageConfig(), name="mean")
    package = load_package(tmp_path / "mean")
    prompt = TextPart(tuple(package.tokenizer.encode("a red circle").tolist()))
    params = SamplingParams(**QUICK, modalities=("image",))
    (made,) = generate(package.model, package.config, [Request((prompt,), params)])
    (image,) = made.images
    assert image.shape == package.config.latent_shape
    assert image.isfinite().all()


def test_bf16_stays_bf16_and_is_rounded_once(tmp_path) -> None:
    # 1 + 1/256 is between two numbers of bf16; the sum 1 + 1/128 + 1 is not, in bf16 arithmetic.
    values = {"a": 1.0, "b": 1.0, "c": 1.0078125}
    for role, value in values.items():
        save_file({"w": torch.tensor([value], dtype=torch.bfloat16)}, tmp_path / role)
    files = {role: safe_open(tmp_path / role, framework="pt") for role in values}
    mean = MeanTensors(files, {"a": 0.25, "b": 0.125, "c": 0.625})["w"]
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1.0078125


def test_models_that_are_not_alike_are_refused_with_every_difference(packages, tmp_path) -> None:
    first = packages["a"]
    other = {name: load_file(first / file) for name, file in WEIGHT_FILES.items()}
    other["ema"] = dict(other["ema"])
    name = min(other["ema"])
    other["ema"][name] = other["ema"][name][:1].bfloat16()
    config = verify_package(first)
    odd = rewrite(
        first,
        tmp_path / "odd",
        weights=other,
        model=config.model.model_copy(update={"depth": 3}),
        num_timesteps=500,
        sampling=SamplingDefaults(temperature=0.5),
    )
    for place in ("tokenizer.model", "autoencoder/latent_statistics.json"):
        (odd / place).write_bytes((odd / place).read_bytes() + b" ")
    with pytest.raises(
        ArtifactError, match=r"(?s)latent_statistics.json: differs.*tokenizer.model"
    ):
        average_packages(tmp_path / "mean", {"x": first, "odd": odd}, AverageConfig())
    changed = read_config(odd)
    files = {name: sha256_file(odd / name) for name in changed.files}
    text = changed.model_copy(update={"files": files}).model_dump_json()
    (odd / "config.json").write_text(text)
    with pytest.raises(ArtifactError) as told:
        average_packages(tmp_path / "mean", {"x": first, "odd": odd}, AverageConfig())
    lines = str(told.value).splitlines()
    assert lines[:5] == [
        "average: x and odd differ in model.depth: 2 and 3",
        "average: x and odd differ in num_timesteps: 1000 and 500",
        "average: x and odd differ in the file autoencoder/latent_statistics.json",
        "average: x and odd differ in the file tokenizer.model",
        "average: x and odd differ in sampling: say which in the stage's config.sampling",
    ]
    assert f"average: ema.safetensors: {name} is F32" in lines[5]
    assert "BF16 [1" in lines[5]
    assert len(lines) == 6
    assert not (tmp_path / "mean").exists()


def test_a_sampling_that_is_given_need_not_be_theirs(packages, tmp_path) -> None:
    other = {name: load_file(packages["b"] / file) for name, file in WEIGHT_FILES.items()}
    cold = rewrite(
        packages["b"], tmp_path / "b", weights=other, sampling=SamplingDefaults(temperature=0.5)
    )
    chosen = SamplingDefaults(guidance_scale=5.0)
    config = average_packages(
        tmp_path / "mean", {"a": packages["a"], "b": cold}, AverageConfig(sampling=chosen)
    )
    assert config.sampling == chosen


def test_what_a_job_gets_wrong_is_told_before_it_runs() -> None:
    assert check(AverageConfig(), {"a": "x", "b": "y"}) == []
    alone, shares = check(AverageConfig(shares={"b": 1.0}), {"a": "x"})
    assert "two models or more, got 1" in alone
    assert "must name each input once (a), got b" in shares
    config, faults = validate(AverageConfig, {"shares": {"a": 0}}, where="config")
    assert config is None
    assert "config.shares.a" in faults[0]


def test_the_stage_publishes_a_model_that_tells_where_it_is_from(packages, tmp_path) -> None:
    def artifact(role: str) -> Artifact:
        made = Mock(spec=Artifact)
        made.folder.return_value = packages[role]
        made.manifest = SimpleNamespace(
            stage=role, uses="transfusion.package", fingerprint=role * 64, digest="d", inputs={},
            payload={},
        )  # fmt: skip
        return made

    inputs = {role: artifact(role) for role in packages}
    context = Mock(spec=StageContext)
    context.configure_mock(
        store=open_store(str(tmp_path / "store")), folder="out", fingerprint="e" * 64,
        scratch=tmp_path, log=logging.getLogger("transfusion.test"),
    )  # fmt: skip
    made = average_write.run(AverageConfig(), inputs, context)
    assert {"config.json", "ema.safetensors", "model.safetensors"} < {f.name for f in made.files}
    described = verify_package(tmp_path / "package")
    assert described.name == "transfusion-eeeeeeeeeeee"
    assert described.lineage == lineage(inputs.values())
    assert STAGE.body == f"{average_write.__name__}:run"
