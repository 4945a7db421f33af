"""Pictures that a run drew on the way: strips of held-out prompts, from the first to the last."""

import json
import re
from dataclasses import dataclass

from transfusion.artifacts.artifact import Artifact
from transfusion.report.pictures import Album, Picture

STRIP_WIDTHS = 4
"""A strip may be so many times as wide as a single image of the page."""


@dataclass(frozen=True, slots=True)
class Strip:
    """What was drawn after a step, side by side."""

    step: int
    picture: Picture
    prompts: list[str]
    """Of the pictures, in their order."""


def read_previews(run: Artifact, album: Album, *, limit: int) -> list[Strip]:
    """At most `limit` strips of a run, evenly spread, the last among them; at most a fifth of the album."""
    names = {file.name for file in run.manifest.content.files}
    found = sorted(name for name in names if re.fullmatch(r"previews/step-\d+\.png", name))
    count = min(limit, album.left // 5, len(found))
    chosen = [found[len(found) * (index + 1) // count - 1] for index in range(count)]
    return [_strip(run, album, name, names) for name in chosen]


def _strip(run: Artifact, album: Album, name: str, names: set[str]) -> Strip:
    about = name.removesuffix(".png") + ".json"
    told = json.loads(run.read(about)) if about in names else {}
    return Strip(
        step=int(name.removesuffix(".png").rpartition("-")[2]),
        picture=album.add(run.read(name), widths=STRIP_WIDTHS),
        prompts=told.get("prompts", []),
    )
