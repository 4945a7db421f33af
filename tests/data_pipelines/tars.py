"""Tars for tests: members as they are given, well formed or not."""

import io
import json
import tarfile
from pathlib import Path

Member = tuple[str, bytes] | tarfile.TarInfo


def tar_bytes(members: list[Member]) -> bytes:
    """A tar of these members, in this order; a TarInfo is written as it is, without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, data = member
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pair(name: str, caption: str = "", **fields: object) -> list[Member]:
    """A sample as img2dataset writes it, in its order; the image is `image NAME`."""
    sidecar = {"caption": caption, "key": name, "status": "success", **fields}
    return [
        (f"{name}.jpg", b"image " + name.encode()),
        (f"{name}.json", json.dumps(sidecar).encode()),
        (f"{name}.txt", (caption or f"number {name}").encode()),
    ]


def write_tar(place: Path, members: list[Member]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(tar_bytes(members))
    return place


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
