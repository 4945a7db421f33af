"""What is evaluated on: the documents that a mixture lists as held out, and no others."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.mixes import Doc, inputs_of, keys_of, mix, pair, prose, sha_of_image
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import HELD_OUT, HELD_OUT_SCHEMA, read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.evaluate.held_out import held_out_images, text_documents
from transfusion.sequence.held_out import is_held_out

FRACTION = 0.3
PAIRS = [pair(f"{i:03d}", metadata={"score": i % 3}) for i in range(60)]
PROSE = [prose(f"p{i:02d}", metadata={"score": i % 3}) for i in range(40)]


def made(root: Path, docs: Sequence[Doc] = PAIRS, **changed: Any) -> Artifact:
    """Pairs and prose, of which three of ten are held out."""
    options = {"held_out_fraction": FRACTION, "num_steps": 40, **changed}
    return mix(root, {"pairs": docs, "prose": PROSE}, **options)


def held(docs: Sequence[Doc]) -> list[str]:
    """Keys of the pairs of which the image is held out, or of the texts."""
    keys = []
    for doc in docs:
        images = [segment for segment in doc.segments if isinstance(segment, str)]
        content = sha_of_image(images[0]) if images else text_sha(doc.key)
        if is_held_out(content, FRACTION):
            keys.append(doc.key)
    return keys


def text_sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def texts(mixture: Artifact, *, held_out: bool) -> list[str]:
    return [document.key for document, held in text_documents(mixture) if held is held_out]


def images(mixture: Artifact, limit: int = 1000) -> list[str]:
    return [image.key for image in held_out_images(mixture, limit=limit)]


def test_without_filters_it_is_what_the_content_says_in_the_order_of_the_shards(
    tmp_path: Path,
) -> None:
    mixture = made(tmp_path / "store")
    assert images(mixture) == held(PAIRS)
    assert images(mixture, limit=4) == held(PAIRS)[:4]
    assert texts(mixture, held_out=True) == held(PROSE)
    assert texts(mixture, held_out=False) == [d.key for d in PROSE if d.key not in held(PROSE)]
    found = held_out_images(mixture, limit=3)
    for image in found:
        mean = sha_of_image(f"image of {image.key}")[0] / 256
        assert image.latent.shape == (2, 4, 4)
        assert abs(float(image.latent.mean()) - mean) < 1e-3
        assert len(image.caption_ids) == 5


def test_the_table_names_the_rows_of_the_tokens(tmp_path: Path) -> None:
    mixture = made(tmp_path / "store")
    table = load_table(mixture.store, mixture.entry(HELD_OUT))
    assert table.schema.equals(HELD_OUT_SCHEMA)
    assert table.sort_by([(name, "ascending") for name in table.column_names]).equals(table)
    sources = list(read_mixture(mixture).sources.values())
    docs = [PAIRS, PROSE]
    keys = [
        docs[row["source"]][
            8 * (row["shard"] - sources[row["source"]].first_shard) + row["row"]
        ].key
        for row in table.to_pylist()
    ]
    assert keys == held(PAIRS) + held(PROSE)
    statistics = read_mixture(mixture).statistics
    assert table.num_rows == sum(source["held_out"] for source in statistics.values())


def test_a_held_out_document_that_is_filtered_or_taken_down_is_not_evaluated(
    tmp_path: Path,
) -> None:
    gone = [held(PAIRS)[2], held(PROSE)[1]]
    takedown = tmp_path / "takedown.txt"
    takedown.write_text("\n".join(gone), "utf-8")
    mixture = made(
        tmp_path / "store",
        takedown=str(takedown),
        sources={"pairs": {"filters": [{"column": "score", "at_least": 1}]}},
    )
    expected = [key for key in held(PAIRS) if key not in gone and int(key) % 3]
    assert images(mixture) == expected
    assert len(expected) < len(held(PAIRS)) - 3
    assert texts(mixture, held_out=True) == [key for key in held(PROSE) if key not in gone]
    # Nor is it learned from: what is held out stays so, whatever else is known of it.
    assert not set(texts(mixture, held_out=False)) & set(held(PROSE))


def test_of_held_out_documents_that_look_alike_one_is_evaluated(tmp_path: Path) -> None:
    first, second, third = held(PAIRS)[:3]
    trained = next(doc.key for doc in PAIRS if doc.key not in held(PAIRS))
    hashes = {first: 0, second: 0b11, trained: 0b1, third: 0xFFFF}
    docs = [pair(doc.key, phash=hashes.get(doc.key)) for doc in PAIRS]
    mixture = made(tmp_path / "store", docs, deduplicate="near", near_bits=4)
    assert images(mixture) == [key for key in held(PAIRS) if key != second]
    assert f"pairs/{trained}" not in keys_of(mixture)


def test_what_is_decontaminated_is_not_evaluated_either(tmp_path: Path) -> None:
    root = tmp_path / "store"
    known = held(PAIRS)[0]
    extra = inputs_of(root, "known", [pair("x", image=f"image of {known}")])
    mixture = made(root, extra=extra, decontaminate=["known", "known_latents"])
    assert images(mixture) == held(PAIRS)[1:]


def test_with_nothing_held_out_the_table_is_empty(tmp_path: Path) -> None:
    mixture = made(tmp_path / "store", held_out_fraction=0.0)
    table = load_table(mixture.store, mixture.entry(HELD_OUT))
    assert table.equals(HELD_OUT_SCHEMA.empty_table())
    assert images(mixture) == []
    assert texts(mixture, held_out=True) == []
    assert texts(mixture, held_out=False) == [doc.key for doc in PROSE]
