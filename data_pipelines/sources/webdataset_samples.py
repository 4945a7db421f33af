"""Documents from samples of a tar: which member is the image, which the caption, and what goes along."""

import json
from collections.abc import Mapping
from typing import Any

from data_pipelines.documents import Document, Image, Rejected, Segment, Text
from data_pipelines.sources.cells import metadata_of
from data_pipelines.sources.image_captions import caption_in, caption_of
from data_pipelines.sources.webdataset import WebdatasetConfig
from data_pipelines.sources.webdataset_tar import Sample

_PICKLED = frozenset({"pyd", "pickle", "pkl", "pt", "pth"})


class Draw:
    """Makes documents by the rules of a config."""

    def __init__(self, config: WebdatasetConfig) -> None:
        self._config = config
        self._images = [ending.lower() for ending in config.image_extensions]
        self._caption_ending = config.caption_extension.lower()
        self._wanted = {*self._images}
        if config.caption_field is None:
            self._wanted.add(self._caption_ending)
        if config.caption_field is not None or config.metadata_fields:
            self._wanted.add("json")

    def wanted(self, ending: str) -> bool:
        """Whether a member with this ending is read."""
        return ending in self._wanted

    def document(self, sample: Sample) -> Document | Rejected:
        """The document of a sample, or why there is none."""
        ending = next((name for name in self._images if name in sample.members), None)
        if ending is None:
            found = ", ".join([*sample.members, *sample.others])
            return Rejected(sample.key, "missing_member", f"no image; there are {found}"[:300])
        values = self._values(sample)
        if isinstance(values, Rejected):
            return values
        caption = self._caption(sample, values)
        if isinstance(caption, Rejected):
            return Rejected(sample.key, caption.reason, caption.detail)
        if caption is None and self._config.without_caption == "reject":
            return Rejected(sample.key, "missing_member", f"no caption in {self._caption_place()}")
        words: tuple[Segment, ...] = (Text(caption),) if caption is not None else ()
        metadata = metadata_of(values, self._config.metadata_fields)
        pickled = sum(name.rpartition(".")[2] in _PICKLED for name in sample.others)
        if pickled:
            metadata["pickled_members"] = pickled
        image = Image(sample.members[ending], f"{sample.key}.{ending}")
        return Document(sample.key, (*words, image), metadata)

    def _caption(self, sample: Sample, values: Mapping[str, Any]) -> str | Rejected | None:
        if self._config.caption_field is None:
            data = sample.members.get(self._caption_ending)
            name = f"{sample.key}.{self._caption_ending}"
            return None if data is None else caption_in(data, name=sample.key, sidecar=name)
        said = values.get(self._config.caption_field)
        if said is not None and not isinstance(said, str):
            what = f"{self._config.caption_field!r} is a {type(said).__name__}"
            return Rejected(sample.key, "bad_caption", what)
        return caption_of(said)

    def _caption_place(self) -> str:
        if self._config.caption_field is None:
            return f".{self._caption_ending}"
        return f"{self._config.caption_field!r} of .json"

    def _values(self, sample: Sample) -> Mapping[str, Any] | Rejected:
        data = sample.members.get("json")
        if data is None or not self.wanted("json"):
            return {}
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            return Rejected(sample.key, "bad_metadata", f"{type(error).__name__}: {error}"[:200])
        if not isinstance(values, dict):
            return Rejected(sample.key, "bad_metadata", f"a {type(values).__name__}, not an object")
        return values
