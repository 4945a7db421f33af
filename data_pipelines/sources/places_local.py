"""A place on a disk that every node sees."""

import hashlib
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from data_pipelines.sources.files import hash_files, key_of, path_of, walk
from data_pipelines.sources.place_patterns import is_pattern, matcher, split_pattern
from data_pipelines.sources.places import RawFile, changed, choose
from transfusion.errors import ArtifactError


class LocalPlace:
    """A folder, a file or a pattern. A path with special characters that exists is no pattern."""

    reads_ahead = 1

    def __init__(self, path: str) -> None:
        self._path = path
        place = Path(path).expanduser()
        self._pattern = ""
        if is_pattern(path) and not place.exists():
            folder, self._pattern = split_pattern(str(place))
            self.root = Path(folder or ("/" if path.startswith("/") else "."))
        else:
            self.root = place if place.is_dir() else place.parent
        self._place = place
        self.url = key_of(str(self.root))

    def keys(self) -> list[str]:
        if self._pattern:
            fits = matcher(self._pattern)
            there = walk(self.root) if self.root.is_dir() else iter(())
            keys = [key_of(name) for name in there if fits(name)]
            if not keys:
                raise ArtifactError(f"{self._path}: no file fits this pattern")
            return keys
        if self._place.is_dir():
            return [key_of(name) for name in walk(self.root)]
        if not self._place.exists():
            raise ArtifactError(f"{self._path}: no such file or folder")
        return [key_of(self._place.name)]

    def marked(self, keys: Sequence[str]) -> Iterator[RawFile | tuple[str, str]]:
        names = [path_of(key) for key in keys]
        hashes = hash_files(self.root, names)
        for key, name in zip(keys, names, strict=True):
            digest = hashes[name]
            try:
                if isinstance(digest, OSError):
                    raise digest
                yield RawFile(key, (self.root / name).stat().st_size, f"sha256:{digest}")
            except OSError as error:
                yield key, error.strerror or str(error)

    def files(self, suffixes: Sequence[str] | None = None) -> list[RawFile]:
        keys = choose(self.keys(), suffixes, path=self._path, folder=self._place.is_dir())
        found = []
        for file in self.marked(keys):
            if not isinstance(file, RawFile):
                raise ArtifactError(f"{self.url}/{file[0]}: cannot be read: {file[1]}")
            found.append(file)
        return found

    def read(self, key: str, mark: str) -> bytes:
        try:
            data = (self.root / path_of(key)).read_bytes()
        except OSError as error:
            raise changed(self.url, key) from error
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != mark:
            raise changed(self.url, key)
        return data

    def peek(self, key: str, max_bytes: int | None = None) -> bytes:
        path = self.root / path_of(key)
        if not path.is_file():  # a pipe would wait for its writer
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            return file.read(-1 if max_bytes is None else max_bytes)

    def open(self, key: str, mark: str) -> BufferedReader:
        name = path_of(key)
        found = hash_files(self.root, [name])[name]
        if f"sha256:{found}" != mark:
            raise changed(self.url, key)
        try:
            return (self.root / name).open("rb")
        except OSError as error:
            raise changed(self.url, key) from error
