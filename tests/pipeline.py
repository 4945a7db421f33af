"""Makes artifacts in tests as the runner would: runs a body, commits a manifest, opens the result."""

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.shards import Attempt, ShardTask, WorkerFactory, in_process
from transfusion.artifacts.artifact import Artifact, open_artifact
from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import Content, InputRef, Manifest, manifest_path
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import TokenRow, token_rows
from transfusion.config import validate
from transfusion.resources import PoolResources, Resources
from transfusion.spec.stages import load_function
from transfusion.stage import Made, Progress, StageContext
from transfusion.storage.store import Store, open_store

CODES = 32
"""Of the codebook where a test has images as tokens."""

MIX_OF_CODES = {
    "sequence_length": 160,
    "sequences_per_micro_batch": 2,
    "lanes": 2,
    "num_steps": 4,
    "seed": 0,
    "held_out_fraction": 0.3,
    "layout": {"patch_size": 1},
}


class Launch:
    """Runs shards here and counts them; then `afterwards` befalls the store."""

    def __init__(self, afterwards: Callable[[], None] = lambda: None) -> None:
        self.made: list[int] = []
        self._afterwards = afterwards

    def __call__(
        self, factory: WorkerFactory, tasks: Sequence[ShardTask], resources: PoolResources
    ) -> Iterator[Attempt]:
        self.made.append(len(tasks))
        yield from in_process(factory, tasks, resources)
        self._afterwards()


def make_context(
    store: Store,
    uses: str,
    *,
    scratch: Path,
    name: str = "stage",
    resources: Resources = Resources(),  # noqa: B008 it is frozen
) -> StageContext:
    log = logging.getLogger("transfusion.job").getChild(name)
    return StageContext(
        name=name,
        uses=uses,
        version=importlib.import_module(uses).STAGE.version,
        fingerprint="f" * 64,
        store=store,
        resources=resources,
        scratch=scratch,
        log=log,
        progress=lambda *, total, unit: Progress(log, total=total, unit=unit),
    )


def make(
    root: Path,
    uses: str,
    config: dict[str, Any],
    inputs: dict[str, Artifact] | None = None,
    resources: Resources = Resources(),  # noqa: B008 it is frozen
    **arguments: Any,
) -> Artifact:
    """Runs a stage's body into the store at `root` and commits it; `arguments` go to the body."""
    inputs = inputs or {}
    store = open_store(str(root))
    stage = importlib.import_module(uses).STAGE
    checked, faults = validate(stage.config, config, where="config")
    assert checked is not None, faults
    scratch = root.parent / f"{root.name}-scratch"
    scratch.mkdir(exist_ok=True)
    name = uses.rpartition(".")[2]
    context = make_context(store, uses, scratch=scratch, name=name, resources=resources)
    payload = {
        "uses": uses,
        "config": checked.resolved(),
        "inputs": {role: artifact.manifest.fingerprint for role, artifact in inputs.items()},
    }
    context.fingerprint = fingerprint(payload)
    made: Made = load_function(stage.body)(checked, inputs, context, **arguments)
    if made.outcomes is not None:
        made.outcomes.check(uses)
    return commit(store, uses, stage, context.fingerprint, checked.resolved(), inputs, made)


def commit(
    store: Store,
    uses: str,
    stage: Any,
    identity: str,
    config: dict[str, Any],
    inputs: dict[str, Artifact],
    made: Made,
) -> Artifact:
    content = Content(
        kind=stage.output,
        files=list(made.files),
        outcomes=made.outcomes,
        metadata=dict(made.metadata),
        metrics=dict(made.metrics),
    )
    manifest = Manifest(
        stage=uses,
        uses=uses,
        version=stage.version,
        fingerprint=identity,
        payload={},
        config=config,
        inputs={
            role: InputRef(fingerprint=a.manifest.fingerprint, path=a.path)
            for role, a in inputs.items()
        },
        content=content,
        digest=content.digest(),
        timings=dict(made.timings),
    )
    path = manifest_path(uses, identity)
    store.write(path, canonical_json(manifest.model_dump(mode="json")).encode())
    return open_artifact(store, path, config)


def make_autoencoder(root: Path, **network_config: Any) -> Artifact:
    """An untrained autoencoder of 16 px to 8 x 4 x 4 or 32 px to 8 x 8 x 8, with made-up statistics."""
    import torch

    from transfusion.artifacts.publish import publish_folder
    from transfusion.autoencoder.config import AutoencoderConfig
    from transfusion.autoencoder.network import build_network, save_network
    from transfusion.autoencoder.statistics import LatentStatistics

    torch.manual_seed(0)
    shape = AutoencoderConfig(block_channels=(8, 8, 8), **network_config)
    network = build_network(shape, sample_size_px=32)
    folder = root.parent / f"{root.name}-autoencoder"
    save_network(folder, config=network.config, weights=network.state_dict())
    LatentStatistics(shift=(0.5,) * 8, scale=(2.0,) * 8, num_images=1).write(folder)
    store = open_store(str(root))
    uses = "transfusion.train.autoencoder"
    identity = "a" * 64
    files = publish_folder(store, f"{uses}/files", folder)
    made = Made(files=files, metadata={"latent_channels": 8, "downsampling": 4})
    return commit(store, uses, importlib.import_module(uses).STAGE, identity, {}, {}, made)


def make_model(root: Path, **changed: Any) -> Artifact:
    """The package of `tests.tiny`: random weights, 16 px images, a context of 64."""
    from tests.tiny import tiny_package
    from transfusion.artifacts.publish import publish_folder

    store = open_store(str(root))
    uses = "transfusion.package"
    place = root.parent / f"{root.name}-model"
    folder = place / "package" if place.exists() else tiny_package(place, **changed)
    made = Made(files=publish_folder(store, f"{uses}/files", folder))
    return commit(store, uses, importlib.import_module(uses).STAGE, "b" * 64, {}, {}, made)


def make_mixture(
    root: Path, num_images: int = 60, drawn: str = "data_pipelines.sources.shapes", **changed: Any
) -> Artifact:
    """Drawn images and the language reference, all the way to a plan; no Ray."""
    from data_pipelines.shards import in_process

    images = make(
        root,
        drawn,
        {"num_images": num_images, "seed": 3, "images_per_shard": 25},
    )
    docs = make(root, "data_pipelines.sources.python_docs", {})
    listings = {"images": images, "docs": docs}
    tokenizer = make(
        root, "data_pipelines.tokenizer", {"vocab_size": 400, "max_training_mib": 0.2}, listings
    )
    latents = make(
        root,
        "data_pipelines.encode_images",
        {"image_size_px": 32, "micro_batch": 8},
        {"images": images, "autoencoder": make_autoencoder(root)},
        launch=in_process,
    )
    tokens = {
        name: make(
            root,
            "data_pipelines.tokenize_text",
            {},
            {"documents": listing, "tokenizer": tokenizer},
            launch=in_process,
        )
        for name, listing in listings.items()
    }
    config = {
        "sources": {
            "pairs": {"latents": "latents", "tokens": "captions"},
            "prose": {"tokens": "prose", "held_out_fraction": 0.1},
        },
        "sequence_length": 256,
        "sequences_per_micro_batch": 3,
        "lanes": 2,
        "num_steps": 6,
        "seed": 0,
        "held_out_fraction": 0.1,
        "validation_micro_batches": 2,
    }
    return make(
        root,
        "data_pipelines.mix",
        config | changed,
        {"latents": latents, "captions": tokens["images"], "prose": tokens["docs"]},
    )


def shapes(root: Path, num_images: int = 24) -> Artifact:
    """Drawings with captions, eight a shard."""
    config = {"num_images": num_images, "seed": 3, "images_per_shard": 8}
    return make(root, "data_pipelines.sources.shapes", config)


def tokenizer_of(root: Path, listing: Artifact) -> Artifact:
    return make(root, "data_pipelines.tokenizer", {"vocab_size": 320}, {"images": listing})


def rows_of(tokens: Artifact) -> list[TokenRow]:
    entries = row_entries(tokens).values()
    return [row for entry in entries for row in token_rows(load_table(tokens.store, entry))]


def coded(root: Path, listing: Artifact, autoencoder: Artifact, **config: Any) -> Artifact:
    """The images of a listing as tokens, among the words of their captions."""
    from data_pipelines.shards import in_process

    return make(
        root,
        "data_pipelines.tokenize_images",
        {"image_size_px": 32, "seed": 1, **config},
        {
            "documents": listing,
            "tokenizer": tokenizer_of(root, listing),
            "autoencoder": autoencoder,
        },
        launch=in_process,
    )


def mixture_of_codes(root: Path, tokens: Artifact, **config: Any) -> Artifact:
    """A plan over what `coded` made."""
    sources = {"pairs": {"tokens": "images"}}
    values = {"sources": sources, **MIX_OF_CODES, **config}
    return make(root, "data_pipelines.mix", values, {"images": tokens})
