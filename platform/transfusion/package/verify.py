"""Checking a package against the digests in its own config."""

import hashlib
from pathlib import Path

from transfusion.errors import ArtifactError
from transfusion.package.format import CONFIG, PackageConfig, read_config
from transfusion.storage.store import sha256_file


def verify_package(folder: Path) -> PackageConfig:
    """The package's config, after every file was read and compared.

    Raises:
        ArtifactError: Files are missing or differ from what was packaged; all of them are named.
    """
    config = read_config(folder)
    faults = []
    for name, expected in sorted(config.files.items()):
        place = folder / name
        if not place.is_file():
            faults.append(f"{place}: is missing from the package; copy or export it again")
            continue
        found = sha256_file(place)
        if found != expected:
            faults.append(
                f"{place}: differs from what was packaged: sha256 {found[:16]}... must be {expected[:16]}...; "
                "copy or export the package again"
            )
    if faults:
        raise ArtifactError("\n".join(faults))
    return config


def package_digest(folder: Path) -> str:
    """The one digest of all of it: `config.json` holds those of the other files."""
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
