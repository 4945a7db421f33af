"""What a config promises."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from transfusion.config import Config, Location, read_yaml, validate
from transfusion.errors import SpecError


class Inner(Config):
    size_px: int = Field(3, ge=1)


class Outer(Config):
    path: Location
    optional: Location | None = None
    inner: Inner = Inner()
    named: dict[str, Inner] = {}
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, ...] = (1, 2)


def test_every_fault_is_told_with_place_value_and_remedy() -> None:
    config, faults = validate(
        Outer,
        {"inner": {"sizepx": 3}, "kind": "c", "pair": [1, "2"], "named": {"x": {"size_px": True}}},
        where="job.yaml: config",
    )
    assert config is None
    assert faults == [
        "job.yaml: config.path: this key is required and is missing",
        "job.yaml: config.inner.sizepx: unknown key; did you mean 'size_px'?",
        "job.yaml: config.named.x.size_px: input should be a valid integer, got True",
        "job.yaml: config.kind: input should be 'a' or 'b', got 'c'",
        "job.yaml: config.pair.1: input should be a valid integer, got '2'",
    ]


def test_identity_holds_what_differs_from_the_default_and_no_place() -> None:
    config = Outer(path="/data", inner=Inner(size_px=4), named={"x": Inner()}, pair=(1, 2))
    assert config.identity() == {"inner": {"size_px": 4}, "named": {"x": {}}}
    assert Outer(path="/data", optional="/x").identity() == Outer(path="/data").identity()
    assert Outer(path="/elsewhere").identity() == Outer(path="/data").identity() == {}


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Outer(path="x").kind = "b"  # type: ignore[misc]


def test_overrides_and_interpolations_are_applied(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("seed: 1\nstages: {train: {config: {seed: '${seed}', steps: 5}}}\n")
    values = read_yaml(file, ["seed=7", "stages.train.config.steps=9"])
    assert values["stages"]["train"]["config"] == {"seed": 7, "steps": 9}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "expected"),
        ("a: 1\na: 2\n", "duplicate key"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a: ${nowhere}\n", "nowhere"),
        ("- a\n", "must be a mapping"),
        ("a: ${oc.env:MY_SECRET_TOKEN}\n", "secret"),
    ],
)
def test_a_faulty_file_is_named_and_the_fault_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=told) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("a: 1\n")
    with pytest.raises(SpecError, match=r"must read path\.to\.key=value"):
        read_yaml(file, ["a"])
