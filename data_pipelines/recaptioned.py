"""Documents of one image that say what a `captions` artifact has of them instead of their own text.

Key and shard stay as they are, so that their tokens join the latents that there are. `finish_reason` goes along as
metadata: a mixture can leave out captions that were cut.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from data_pipelines.document_images import distinct
from data_pipelines.documents import Document, Image, Text
from data_pipelines.shards import ShardTask, shard_id
from data_pipelines.sources.source import Listing, open_listing
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.captions import caption_rows
from transfusion.artifacts.manifest import FileEntry
from transfusion.artifacts.shards import Reject, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError
from transfusion.storage.store import Store

Captions = Mapping[str, FileEntry]
"""The files of a `captions` artifact by the ids of a listing's shards."""


def captions_of(inputs: Mapping[str, Artifact]) -> Captions | None:
    """Those of the input `captions`, if there is one, for the listing `documents`; without shards set aside there.

    Raises:
        ArtifactError: A shard of the listing was not captioned.
    """
    if "captions" not in inputs:
        return None
    captions = inputs["captions"]
    entries = row_entries(captions)
    ids = [shard_id(descriptor) for descriptor in open_listing(inputs["documents"]).shards]
    there = entries.keys() | captions.metadata.get("quarantined", {}).keys()
    missing = sum(one not in there for one in ids)
    if missing:
        raise ArtifactError(
            f"{captions.store.url(captions.path)}: lacks {missing} of the listing's {len(ids)} shards: "
            "it was made from another; caption this one"
        )
    return {one: entries[one] for one in ids if one in entries}


def documents_of(
    task: ShardTask, listing: Listing, captions: Captions | None, store: Store
) -> Iterator[Document | Reject]:
    """The documents of a shard, those of a key once; with captions each is caption and image."""
    documents = distinct(listing.read(task.descriptor))
    if captions is None:
        yield from documents
        return
    said = {row.key: row for row in caption_rows(load_table(store, captions[task.shard_id]))}
    for document in documents:
        if isinstance(document, Reject):
            yield document
        elif (row := said.get(document.key)) is None:
            yield Reject(document.key, "no_caption", "the model said nothing of its image")
        else:
            images = [segment for segment in document.segments if isinstance(segment, Image)]
            yield replace(
                document,
                segments=(Text(row.caption), *images),
                metadata={**document.metadata, "finish_reason": row.finish_reason},
            )
