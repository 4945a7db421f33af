"""Configuration: OmegaConf reads, merges and interpolates; frozen pydantic models validate.

A config model stands beside its owner. Every field is identity (it decides what is made) unless it is a
`Location`: where raw input lies says nothing of what it holds, so the content stands in for it.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from transfusion.errors import SpecError

C = TypeVar("C", bound=BaseModel)

JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


_SECRET = re.compile(
    r"\$\{\s*oc\.env:[^}]*(?:KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL)[^}]*\}", re.IGNORECASE
)


class _Place:
    """Marks a field that names a place and is left out of the identity."""


Location = Annotated[str, _Place()]
"""A path or URI of raw input: identified by its content, never by where it lies."""


class Config(BaseModel):
    """Base of every config: frozen, strict, no unknown keys. Field docs are the string below the field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def resolved(self) -> dict[str, Any]:
        """All values, defaults included, as plain JSON."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """The values that decide what is made: those that differ from their default, no `Location`.

        Leaving defaults out means that a new option re-keys nothing made before it existed.
        """
        return _identity(self)


def is_location(field: FieldInfo) -> bool:
    """Whether a field names a place: a `Location`, or a `Location | None`."""
    optional = [getattr(option, "__metadata__", ()) for option in get_args(field.annotation)]
    marks = [*field.metadata, *(mark for found in optional for mark in found)]
    return any(isinstance(mark, _Place) for mark in marks)


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    if isinstance(value, Mapping):
        merged: dict[str, Any] = {}
        for key, item in value.items():
            merged |= flattened(item, f"{prefix}.{key}" if prefix else str(key))
        return merged
    return {prefix: value}


def _identity(config: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = {}
    plain = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if is_location(field):
            continue
        value = getattr(config, name)
        if not field.is_required() and value == field.get_default(call_default_factory=True):
            continue
        values[name] = _identity_value(value, plain[name])
    return values


def _identity_value(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel):
        return _identity(value)
    if isinstance(value, Mapping):
        return {str(key): _identity_value(value[key], plain[str(key)]) for key in value}
    if isinstance(value, list | tuple):
        return [_identity_value(item, p) for item, p in zip(value, plain, strict=True)]
    return plain


def validate(model: type[C], values: Any, *, where: str) -> tuple[C | None, list[str]]:
    """Checks plain values against a config model.

    Args:
        where: What to put before each fault: file and path, such as `job.yaml: stages.mix.config`.

    Returns:
        The config and no faults, or None and every fault as `where.field: rule, got value; remedy`.
    """
    try:
        # Through JSON: strict mode then takes a list for a tuple, and still no "3" or true for an int.
        return model.model_validate_json(json.dumps(values)), []
    except ValidationError as error:
        return None, [_fault(model, detail, where) for detail in error.errors(include_url=False)]


def _fault(model: type[BaseModel], detail: ErrorDetails, where: str) -> str:
    steps = [str(step) for step in detail["loc"]]
    place = ".".join([where, *steps]) if where else ".".join(steps)
    if detail["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggestion(steps[-1], _fields_at(model, steps[:-1]))}"
    if detail["type"] == "missing":
        return f"{place}: this key is required and is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[0].lower()}{message[1:]}, got {detail['input']!r}"


def _fields_at(model: type[BaseModel], steps: Sequence[str]) -> list[str]:
    current: Any = model
    for step in steps:
        fields = getattr(current, "model_fields", {})
        if step in fields:
            current = _model_in(fields[step].annotation)
    return list(getattr(current, "model_fields", {}))


def _model_in(annotation: Any) -> Any:
    """The config model inside an annotation such as `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def suggestion(word: str, known: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?`, or the known words when none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file with dot-list overrides merged over it and interpolations resolved.

    Raises:
        SpecError: The file is missing, is no YAML mapping, or an override or interpolation is at fault.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if not path.is_file():
        raise SpecError(
            f"{path}: {'is a folder; give a file' if path.is_dir() else 'no such file'}"
        )
    faults = []
    for item in overrides:
        try:
            OmegaConf.from_dotlist([item])
        except (YAMLError, OmegaConfBaseException, ValueError) as error:
            faults.append(f"override {item!r}: {' '.join(str(error).split())}")
        if "=" not in item:
            faults.append(
                f"override {item!r}: must read path.to.key=value, such as stages.train.config.steps=100"
            )
    if faults:
        raise SpecError(faults)
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise SpecError(f"{path}: must be a mapping of keys to values")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        secret = _SECRET.search(OmegaConf.to_yaml(merged, resolve=False))
        if secret:
            # A resolved job is saved, submitted and shown: what it holds is no secret any more.
            raise SpecError(
                f"{path}: {secret[0]}: a job file must not read a secret from the environment; credentials "
                "reach the libraries that need them through the environment itself"
            )
        plain = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, ValueError) as error:
        raise SpecError(f"{path}: {' '.join(str(error).split())}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
