"""Packed sequences of a mixture, readable: what a model is given, decoded again."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transfusion.artifacts.artifact import Artifact

if TYPE_CHECKING:
    from transfusion.ingest.reader import MixtureReader
    from transfusion.sequence.batch import PackedBatch
    from transfusion.tokenizer.tokenizer import Tokenizer

SHOWN_CHARACTERS = 320
"""Of one text, on a terminal; a script is given all of it."""


def example_sequences(artifact: Artifact, count: int) -> list[dict[str, Any]]:
    """`{"step", "lane", "sequence", "positions", "documents": [{"key", "parts": [...]}]}`, evenly spread.

    A part is `{"text": ...}` or `{"image": "16x16"}`; a text that goes on in another sequence says so by
    `"begins": false` or `"ends": false` of its document.
    """
    from transfusion.ingest.reader import MixtureReader
    from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

    reader = MixtureReader(artifact, seed=0, threads=1)
    source = next(iter(reader.mixture.sources.values()))
    tokenizer = Tokenizer(artifact.input(source.tokens).input("tokenizer").read(MODEL))
    per_batch = reader.sequences_per_micro_batch
    total = reader.steps * reader.lanes * per_batch
    count = min(count, total)
    found = []
    for number in range(count):
        place, sequence = divmod(number * total // count, per_batch)
        step, lane = divmod(place, reader.lanes)
        batch = reader.micro_batch(step, lane)
        keys = reader.document_ids(step, lane)
        documents = list(_documents(reader, batch, tokenizer))
        first = sum(row < sequence for row, _ in documents)
        mine = [document for row, document in documents if row == sequence]
        found.append(
            {
                "step": step,
                "lane": lane,
                "sequence": sequence,
                "positions": sum(document["positions"] for document in mine),
                "documents": [
                    {"key": key, **document}
                    for key, document in zip(keys[first:], mine, strict=False)
                ],
            }
        )
    return found


def _documents(
    reader: "MixtureReader", batch: "PackedBatch", tokenizer: "Tokenizer"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The documents of a batch, with the sequence that each is in."""
    pad = reader.special.pad
    height, width = (reader.layout.patches(side) for side in reader.latent_shape[1:])
    patches = set(batch.image_positions.flatten().tolist())
    length = batch.token_ids.shape[1]
    for row, (ids, positions) in enumerate(
        zip(batch.token_ids.tolist(), batch.position_ids.tolist(), strict=True)
    ):
        used = [at for at in range(length) if ids[at] != pad or row * length + at in patches]
        starts = [at for at in used if positions[at] == 0]
        for start, end in zip(starts, [*starts[1:], len(used)], strict=True):
            inside = ids[start:end]
            yield (
                row,
                {
                    "positions": end - start,
                    "begins": inside[0] == reader.special.bos,
                    # Behind it there may be patches.
                    "ends": reader.special.eos in inside,
                    "parts": list(_parts(inside, reader, tokenizer, f"{height}x{width}")),
                },
            )


def _parts(
    ids: Sequence[int], reader: "MixtureReader", tokenizer: "Tokenizer", size: str
) -> Iterator[dict[str, str]]:
    special = reader.special
    text: list[int] = []
    for token in ids:
        if token in (special.bos, special.eos, special.boi):
            if text:
                yield {"text": tokenizer.decode(text)}
            text = []
            if token == special.boi:
                yield {"image": size}
        elif token < special.pad:
            text.append(token)
    if text:
        yield {"text": tokenizer.decode(text)}


def sequences_text(sequences: Sequence[dict[str, Any]]) -> str:
    """The examples for a terminal: a line a document."""
    lines = []
    for sequence in sequences:
        lines.append(
            f"\nstep {sequence['step']:,}, lane {sequence['lane']}, sequence {sequence['sequence']}: "
            f"{sequence['positions']:,} positions, {len(sequence['documents'])} documents"
        )
        for document in sequence["documents"]:
            told = " ".join(_told(part, document["key"]) for part in document["parts"])
            before = "" if document["begins"] else "... "
            after = "" if document["ends"] else " ..."
            lines.append(f"  {document['key']:24} {before}{told}{after}")
    return "\n".join(lines)


def _told(part: dict[str, str], key: str) -> str:
    if "image" in part:
        return f"[image {part['image']} {key}]"
    text = part["text"].replace("\n", " \u21b5 ")
    if len(text) > SHOWN_CHARACTERS:
        left = len(text) - SHOWN_CHARACTERS
        text = f"{text[:SHOWN_CHARACTERS]} (and {left:,} characters more)"
    return text
