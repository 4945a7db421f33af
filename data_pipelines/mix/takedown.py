"""Keys that must not be trained on, as a list names them.

Axes: d = documents of a shard; t = keys of the list.
"""

import bisect
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32

from transfusion.artifacts.mixture import MixtureTakedown
from transfusion.errors import ArtifactError

SHOWN = 5


def read_lines(path: str) -> set[str]:
    """The lines of a list. A key may begin or end with white space, and an editor may have added some: both stand.

    Raises:
        ArtifactError: It is no UTF-8.
    """
    data = Path(path).expanduser().read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ArtifactError(f"{path}: line {line} is no UTF-8; keys are listed as UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return {key for line in lines if line.strip() for key in (line, line.strip())}


class Takedown:
    """A list of keys: as documents have them, or as `source/key`, as tables of rejects write them."""

    def __init__(self, keys: Iterable[str]) -> None:
        listed = sorted(set(keys))
        self.keys = pa.array(listed, pa.string())
        places = {key: place for place, key in enumerate(listed)}
        # Of one line: as it stands and without the white space around it.
        self._twins = [
            (place, places[key.strip()])
            for key, place in places.items()
            if key != key.strip() and key.strip() in places
        ]

    @classmethod
    def of_file(cls, path: str | None) -> "Takedown":
        """The lines of a file but for empty ones; an empty list where there is no file."""
        if path is None:
            return cls([])
        return cls(read_lines(path))

    def find(
        self, source: str, keys: pa.ChunkedArray
    ) -> tuple[Bool[np.ndarray, " d"], Int32[np.ndarray, " t"]]:
        """Which documents of a shard are listed, and the places of the list that name them.

        A key may itself look like `source/key`. Where a line can be read both ways, both documents are listed:
        one too many is a smaller mistake than one too few.

        Args:
            keys: Of the source's documents, sorted.
        """
        listed = np.zeros(len(keys), bool)
        places = [np.zeros(0, np.int32)]
        for prefix in ("", f"{source}/") if len(keys) else ():
            first = self._place(bisect.bisect_left, prefix + keys[0].as_py())
            last = self._place(bisect.bisect_right, prefix + keys[-1].as_py())
            if first == last:
                continue
            # What lies between two texts that begin alike begins so too.
            near = pc.utf8_slice_codeunits(self.keys[first:last], len(prefix))
            listed |= pc.is_in(keys, near).to_numpy().astype(bool)
            named = pc.is_in(near, keys.combine_chunks()).to_numpy(zero_copy_only=False)
            places.append((first + np.flatnonzero(named)).astype(np.int32))
        return listed, np.concatenate(places)

    def told(self, found: Int32[np.ndarray, " _"]) -> MixtureTakedown | None:
        """How many keys are listed and how many name no document; None where none is listed.

        Args:
            found: Places that name a document, in any order and as often as they do.
        """
        if not len(self.keys):
            return None
        missing = np.ones(len(self.keys), bool)
        missing[found] = False
        for one, other in self._twins:
            # The line names a document if either does; if neither does it counts once.
            missing[other] &= missing[one]
            missing[one] = False
        first = np.flatnonzero(missing)[:SHOWN]
        return MixtureTakedown(
            listed=len(self.keys) - len(self._twins),
            not_found=int(missing.sum()),
            first_not_found=self.keys.take(pa.array(first)).to_pylist(),
        )

    def _place(self, search: Callable[..., int], key: str) -> int:
        return search(range(len(self.keys)), key, key=lambda place: self.keys[place].as_py())
