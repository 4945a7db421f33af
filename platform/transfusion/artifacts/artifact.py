"""Opening artifacts: through the manifest only, verifying what is read."""

import functools
import hashlib
import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from transfusion.artifacts.manifest import FileEntry, Manifest, artifact_path, manifest_path
from transfusion.errors import ArtifactError
from transfusion.storage.store import Store, cache_folder, sha256_file


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. `config` is the current job's, so that a moved raw folder is found."""

    store: Store
    manifest: Manifest
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The artifact's folder, relative to the store."""
        return artifact_path(self.manifest.uses, self.manifest.fingerprint)

    @property
    def kind(self) -> str:
        """What it holds; decides which reader opens it."""
        return self.manifest.content.kind

    @property
    def metadata(self) -> dict[str, Any]:
        """Constants of its kind."""
        return self.manifest.content.metadata

    @functools.cached_property
    def _by_name(self) -> dict[str, FileEntry]:
        # A manifest may list a hundred thousand files, and readers ask for each.
        return {file.name: file for file in self.manifest.content.files}

    def entry(self, name: str) -> FileEntry:
        """The file of that name. Raises ArtifactError, listing some names, when there is none."""
        found = self._by_name.get(name)
        if found is not None:
            return found
        names = ", ".join(file.name for file in self.manifest.content.files[:8])
        raise ArtifactError(
            f"{self.store.url(self.path)}: holds no file {name!r}; it holds {names}"
        )

    def local(self, name: str) -> Path:
        """A verified local copy of one file.

        Raises:
            ArtifactError: The file is gone, or its bytes are not those that were committed.
        """
        return verified(self.store, self.entry(name))

    def read(self, name: str) -> bytes:
        """The verified bytes of one small file."""
        entry = self.entry(name)
        data = self.store.read(entry.path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ArtifactError(_altered(self.store, entry))
        return data

    def folder(self) -> Path:
        """A local folder with every file under its name, each verified."""
        places = [(entry, verified(self.store, entry)) for entry in self.manifest.content.files]
        roots = {_root_of(entry, place) for entry, place in places}
        if len(roots) == 1:
            return roots.pop()
        # Copies from S3 lie in the cache by their ETag: line them up under their names.
        root = cache_folder() / "folders" / self.manifest.digest
        for entry, place in places:
            target = root / entry.name
            # A copy that was found damaged has been fetched anew: the old link is not it.
            if not (target.exists() and target.samefile(place)):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.parent / f".tmp-{uuid.uuid4().hex}"
                os.link(place, temporary)
                temporary.replace(target)
        return root

    def input(self, role: str) -> "Artifact":
        """The artifact that this one was made from, in that role."""
        reference = self.manifest.inputs.get(role)
        if reference is None:
            known = ", ".join(self.manifest.inputs)
            raise ArtifactError(
                f"{self.store.url(self.path)}: has no input {role!r}; it has {known}"
            )
        return open_artifact(self.store, f"{reference.path}/manifest.json")


def verified(store: Store, entry: FileEntry) -> Path:
    """A local file of which size and sha256 were compared with the manifest's.

    Raises:
        ArtifactError: The stored bytes are not those that were committed. A local copy that was altered in the
            cache is fetched again first.
    """
    try:
        place = store.local(entry.path)
    except ArtifactError as error:
        if store.size(entry.path) is not None:
            raise
        raise ArtifactError(
            f"{store.url(entry.path)}: is gone, which a manifest lists; delete the manifests that list it, then "
            "run the job again: it makes what is missing"
        ) from error
    if not _fits(place, entry):
        place = store.local(entry.path, fresh=True)
        if not _fits(place, entry):
            raise ArtifactError(_altered(store, entry))
    return place


def _fits(place: Path, entry: FileEntry) -> bool:
    stat = place.stat()
    return stat.st_size == entry.bytes and _matches(place, stat.st_mtime_ns, entry.sha256)


@functools.lru_cache(maxsize=100_000)
def _matches(place: Path, mtime_ns: int, sha256: str) -> bool:
    """Whether the file has that digest; remembered for as long as this process runs and it is untouched."""
    del mtime_ns
    return sha256_file(place) == sha256


def _altered(store: Store, entry: FileEntry) -> str:
    return (
        f"{store.url(entry.path)}: its bytes are not the {entry.bytes} that were committed "
        f"(sha256 {entry.sha256[:16]}...): the file was altered or cut short; delete it and the "
        "manifests that list it, then run the job again: it makes what is missing"
    )


def _root_of(entry: FileEntry, place: Path) -> Path:
    depth = len(Path(entry.name).parts)
    # A file that lies under another name than its own is in no folder with the others.
    return place.parents[depth - 1] if place.parts[-depth:] == Path(entry.name).parts else place


def open_artifact(store: Store, path: str, config: dict[str, Any] | None = None) -> Artifact:
    """Opens an artifact by the path of its manifest, relative to the store.

    Raises:
        ArtifactError: There is none, or what is there is no manifest.
    """
    try:
        manifest = Manifest.model_validate_json(store.read(path))
    except ValidationError as error:
        raise ArtifactError(
            f"{store.url(path)}: is not a manifest: {error.errors()[0]['msg']}"
        ) from error
    if manifest.content.digest() != manifest.digest:
        raise ArtifactError(
            f"{store.url(path)}: its digest does not fit its content: it was edited"
        )
    return Artifact(store, manifest, config or {})


def find_artifact(
    store: Store, *, uses: str, fingerprint: str, config: dict[str, Any] | None = None
) -> Artifact | None:
    """The committed artifact of an identity, or None."""
    path = manifest_path(uses, fingerprint)
    if not store.exists(path):
        return None
    artifact = open_artifact(store, path, config)
    if artifact.manifest.fingerprint != fingerprint:
        raise ArtifactError(
            f"{store.url(path)}: belongs to {artifact.manifest.fingerprint}, not {fingerprint}"
        )
    return artifact
