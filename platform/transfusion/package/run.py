"""The body of the package stage: a finished run becomes a model package."""

from collections.abc import Mapping
from typing import Any

import torch

from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import Mixture, read_mixture
from transfusion.artifacts.publish import publish_folder
from transfusion.config import validate
from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig, check_solver
from transfusion.errors import ArtifactError, SpecError
from transfusion.model.config import ModelConfig
from transfusion.model.weights_file import LazyTensors, read_tensors
from transfusion.package.config import PackageStageConfig
from transfusion.package.format import (
    TOKENIZER,
    WEIGHT_FILES,
    LineageEntry,
    PackageConfig,
    Weights,
)
from transfusion.package.verify import verify_package
from transfusion.package.write import write_package
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.stage import Made, StageContext


def run(config: PackageStageConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Made:
    """Gathers weights, tokenizer and autoencoder in one folder, with the lineage of all of it."""
    described = describe(config, inputs, name=f"transfusion-{context.fingerprint[:12]}")
    folder = context.scratch / "package"
    write_package(
        folder,
        config=described,
        weights={name: _weights(inputs["run"], name, config) for name in WEIGHT_FILES},
        tokenizer=inputs["tokenizer"].read(TOKENIZER),
        autoencoder=inputs["autoencoder"].folder(),
    )
    verify_package(folder)
    context.log.info(f"packaged {described.name}")
    metadata = {"name": described.name, "image_size_px": described.image_size_px}
    return Made(files=publish_folder(context.store, context.folder, folder), metadata=metadata)


def describe(
    config: PackageStageConfig, inputs: Mapping[str, Artifact], *, name: str
) -> PackageConfig:
    """The package's config, all but the digests of its files.

    Raises:
        ArtifactError: The inputs do not belong together.
        SpecError: The default solver does not fit the schedule that the run was trained on.
    """
    trained = inputs["run"].manifest.config
    planned = read_mixture(inputs["mixture"])
    model, faults = validate(ModelConfig, trained["model"], where="run: model")
    layout, more = validate(SequenceLayout, planned.layout, where="mixture: layout")
    objective, others = validate(ObjectiveConfig, trained["objective"], where="run: objective")
    if model is None or layout is None or objective is None:
        raise ArtifactError("\n".join(faults + more + others))
    try:
        check_solver(config.sampling.solver, schedule=objective.schedule)
    except ValueError as error:
        raise SpecError(f"package: sampling: {error}") from error
    _check_belongs(inputs)
    num_pieces = int(inputs["tokenizer"].metadata["num_pieces"])
    special = SpecialIds.after(num_pieces)
    return PackageConfig(
        name=name,
        model=model,
        num_pieces=num_pieces,
        special_ids={key: getattr(special, key) for key in ("pad", "bos", "eos", "boi", "eoi")},
        layout=layout,
        sampling=config.sampling,
        lineage=lineage(inputs.values()),
        files={},
        **said_by(
            planned, objective, downsampling=int(inputs["autoencoder"].metadata["downsampling"])
        ),
    )


def said_by(plan: Mixture, noise: NoiseConfig, *, downsampling: int) -> dict[str, Any]:
    """Fields of a `PackageConfig` that the plan and the objective of its training decide."""
    return {
        "num_codes": plan.num_codes,
        "sequence_length": plan.sequence_length,
        "latent_channels": plan.latent_channels,
        "latent_height": plan.latent_height,
        "latent_width": plan.latent_width,
        "image_size_px": plan.latent_height * downsampling,
        **{name: getattr(noise, name) for name in NoiseConfig.model_fields},
    }


def lineage(artifacts: Any) -> list[LineageEntry]:
    """Everything that some artifacts were made from, themselves included, nearest first, each once."""
    entries: dict[str, LineageEntry] = {}
    waiting = list(artifacts)
    while waiting:
        artifact = waiting.pop(0)
        manifest = artifact.manifest
        if manifest.fingerprint in entries:
            continue
        entries[manifest.fingerprint] = LineageEntry(
            stage=manifest.stage,
            uses=manifest.uses,
            fingerprint=manifest.fingerprint,
            digest=manifest.digest,
            inputs={role: ref.fingerprint for role, ref in manifest.inputs.items()},
            config=manifest.payload.get("config", {}),
        )
        waiting += [artifact.input(role) for role in manifest.inputs]
    return list(entries.values())


def _check_belongs(inputs: Mapping[str, Artifact]) -> None:
    """The run must be of this mixture, and the mixture of this tokenizer and autoencoder."""
    upstream = {entry.fingerprint for entry in lineage([inputs["run"]])}
    faults = [
        f"package: the input {role!r} ({artifact.path}) is not what the run {inputs['run'].path} "
        "was trained with; name the stage that was"
        for role, artifact in inputs.items()
        if artifact.manifest.fingerprint not in upstream
    ]
    if faults:
        raise ArtifactError("\n".join(faults))


def _weights(run_: Artifact, name: Weights, config: PackageStageConfig) -> LazyTensors:
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    return read_tensors(run_.local(WEIGHT_FILES[name]), dtype=dtype)
