"""Makes artifacts in tests as the runner would: runs a body, commits a manifest, opens the result."""

import importlib
import logging
from pathlib import Path
from typing import Any

from transfusion.artifacts.artifact import Artifact, open_artifact
from transfusion.artifacts.canonical import canonical_json, fingerprint
from transfusion.artifacts.manifest import Content, InputRef, Manifest, manifest_path
from transfusion.config import validate
from transfusion.spec.stages import load_function
from transfusion.stage import Made, Progress, Resources, StageContext
from transfusion.storage.store import Store, open_store


def make_context(store: Store, uses: str, *, scratch: Path, name: str = "stage") -> StageContext:
    log = logging.getLogger("transfusion.job").getChild(name)
    return StageContext(
        name=name,
        uses=uses,
        version=importlib.import_module(uses).STAGE.version,
        fingerprint="f" * 64,
        store=store,
        resources=Resources(),
        scratch=scratch,
        log=log,
        progress=lambda *, total, unit: Progress(log, total=total, unit=unit),
    )


def make(
    root: Path,
    uses: str,
    config: dict[str, Any],
    inputs: dict[str, Artifact] | None = None,
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
    context = make_context(store, uses, scratch=scratch, name=uses.rpartition(".")[2])
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
