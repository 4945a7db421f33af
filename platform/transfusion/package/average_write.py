"""The body of the averaging stage: several model packages become one, tensor by tensor."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.publish import publish_folder
from transfusion.config import flattened
from transfusion.errors import ArtifactError
from transfusion.model.weights_file import LazyTensors, likes
from transfusion.package.average import AverageConfig
from transfusion.package.format import (
    AUTOENCODER,
    TOKENIZER,
    WEIGHT_FILES,
    PackageConfig,
)
from transfusion.package.run import lineage
from transfusion.package.verify import verify_package
from transfusion.package.write import write_package
from transfusion.stage import Made, StageContext

OWN = ("name", "lineage", "files", "sampling")
"""Of a package's config, what may differ between models that are averaged; `sampling` if the job gives another."""


def run(config: AverageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Averages models, raw weights with raw and averaged with averaged."""
    described = average_packages(
        context.scratch / "package",
        {role: artifact.folder() for role, artifact in inputs.items()},
        config,
        name=f"transfusion-{context.fingerprint[:12]}",
        lineage=lineage(inputs.values()),
    )
    context.log.info(f"averaged {len(inputs)} models as {described.name}")
    metadata = {"name": described.name, "image_size_px": described.image_size_px}
    return Made(
        files=publish_folder(context.store, context.folder, context.scratch / "package"),
        metadata=metadata,
    )


def average_packages(
    folder: Path, packages: Mapping[str, Path], config: AverageConfig, **about: Any
) -> PackageConfig:
    """Fills an empty folder with the mean of packages.

    Args:
        packages: Folders by role.
        about: Name and lineage.

    Raises:
        ArtifactError: Packages are damaged or of different models; every fault is named.
    """
    configs = {role: verify_package(place) for role, place in sorted(packages.items())}
    first, *others = configs
    total = sum(config.shares.get(role, 1.0) for role in configs)
    shares = {role: config.shares.get(role, 1.0) / total for role in configs}
    with ExitStack() as opened:
        weights = {
            name: MeanTensors(
                {role: opened.enter_context(_open(packages[role] / file)) for role in configs},
                shares,
            )
            for name, file in WEIGHT_FILES.items()
        }
        faults = [
            f"average: {role} and {first} differ in {fault}"
            for role in others
            for fault in _differences(configs[role], configs[first], config)
        ]
        faults += [
            f"average: {WEIGHT_FILES[name]}: {fault}"
            for name, mean in weights.items()
            for fault in mean.faults()
        ]
        if faults:
            raise ArtifactError("\n".join(faults))
        sampling = config.sampling or configs[first].sampling
        write_package(
            folder,
            config=configs[first].model_copy(update={"files": {}, "sampling": sampling, **about}),
            weights=weights,
            tokenizer=(packages[first] / TOKENIZER).read_bytes(),
            autoencoder=packages[first] / AUTOENCODER,
        )
    return verify_package(folder)


class MeanTensors(LazyTensors):
    """The weighted mean of files of weights. One tensor is computed when it is asked for, in fp64."""

    def __init__(self, files: Mapping[str, Any], shares: Mapping[str, float]) -> None:
        self._files = files
        self._shares = shares
        super().__init__(likes(next(iter(files.values()))), self._mean)

    def faults(self) -> list[str]:
        """Tensors that are not the same in all files: missing, of another shape or type."""
        described = {
            role: {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
            for role, file in self._files.items()
        }
        first, *others = described
        return [
            f"{name} is {described[role].get(name, 'missing')} in {role} and "
            f"{described[first].get(name, 'missing')} in {first}"
            for role in others
            for name in sorted(described[role].keys() | described[first].keys())
            if described[role].get(name) != described[first].get(name)
        ]

    def _mean(self, name: str) -> Tensor:
        mean = None
        for role, file in self._files.items():
            tensor = file.get_tensor(name)
            dtype = tensor.dtype
            term = tensor.to(torch.float64).mul_(self._shares[role])
            mean = term if mean is None else mean.add_(term)
        assert mean is not None
        return mean.to(dtype)


def _open(place: Path) -> Any:
    from safetensors import safe_open

    return safe_open(place, framework="pt")


def _described(part: Any) -> str:
    return f"{part.get_dtype()} {list(part.get_shape())}"


def _differences(one: PackageConfig, other: PackageConfig, config: AverageConfig) -> list[str]:
    """Where two packages are not of one model."""
    mine, theirs = (
        flattened({key: value for key, value in each.resolved().items() if key not in OWN})
        for each in (one, other)
    )
    found = [
        f"{key}: {mine.get(key)} and {theirs.get(key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
    parts = sorted(
        name
        for name in one.files.keys() | other.files.keys()
        if name == TOKENIZER or name.startswith(f"{AUTOENCODER}/")
    )
    found += [f"the file {name}" for name in parts if one.files.get(name) != other.files.get(name)]
    if config.sampling is None and one.sampling != other.sampling:
        found.append("sampling: say which in the stage's config.sampling")
    return found
