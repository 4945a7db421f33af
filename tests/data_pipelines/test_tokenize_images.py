"""Documents with images as token ids: every code where it belongs, every document accounted for."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.decode import decode_image
from data_pipelines.documents import Image, Text
from data_pipelines.limits import DecodeLimits
from data_pipelines.shards import in_process
from data_pipelines.sources.source import open_listing
from data_pipelines.tokenize_images.config import TokenizeImagesConfig
from data_pipelines.tokenize_images.rows import CodedImage, coded_row
from tests.pipeline import CODES, coded, make, make_autoencoder, rows_of, shapes, tokenizer_of
from transfusion.artifacts.shards import read_rejects
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.errors import ArtifactError
from transfusion.sequence.special import SpecialIds
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer


def test_documents_are_captions_and_codes_in_both_orders(tmp_path: Path) -> None:

    root = tmp_path / "store"
    listing, folder = shapes(root), make_autoencoder(root, codebook_size=CODES)
    tokens = coded(root, listing, folder)
    pieces = tokens.metadata["num_pieces"]
    assert tokens.metadata["num_codes"] == CODES
    assert (tokens.metadata["code_height"], tokens.metadata["code_width"]) == (8, 8)
    special = SpecialIds.after(pieces, num_codes=CODES)
    assert special.vocab_size == pieces + 5 + CODES
    tokenizer = Tokenizer(tokens.input("tokenizer").read(MODEL))
    autoencoder = Autoencoder.load(folder.folder())
    opened = open_listing(listing)
    documents = {d.key: d for shard in opened.shards for d in opened.read(shard)}
    rows = rows_of(tokens)
    assert sorted(row.key for row in rows) == sorted(documents)
    orders = set()
    for row in rows:
        (ids,) = row.segments
        text, image = documents[row.key].segments
        assert isinstance(text, Text)
        assert isinstance(image, Image)
        (boi,) = np.flatnonzero(ids == special.boi)
        block = ids[boi : boi + 66]
        assert block[-1] == special.eoi
        codes = torch.from_numpy(block[1:-1].astype(np.int64) - special.first_code)
        pixels = torch.from_numpy(np.asarray(decode_image(image.data, DecodeLimits())).copy())
        assert torch.equal(autoencoder.encode_indices(pixels[None]).flatten(), codes)
        around = ids[:boi].tolist() + ids[boi + 66 :].tolist()
        assert tokenizer.decode(around) in (text.text, "")
        orders.add("first" if boi else ("alone" if not around else "behind"))
        assert row.layout == "t"
        assert row.content == hashlib.sha256(image.data).digest()
        assert row.num_bytes == len(text.text.encode())
    assert orders >= {"first", "behind"}


def test_the_draws_follow_the_shares_and_the_document_alone() -> None:
    config = TokenizeImagesConfig(image_size_px=32, seed=5, caption_first=0.7, caption_drop=0.2)
    special = SpecialIds.after(10, num_codes=4)
    caption = np.array([1, 2], np.int32)
    found = {"first": 0, "behind": 0, "alone": 0}
    for number in range(4000):
        image = CodedImage(
            np.array([3, 0], np.int32),
            hashlib.sha256(bytes([number % 256, number // 256])).digest(),
        )
        parts = [caption, image] if number % 2 else [image, caption]
        rows = [
            coded_row(key, parts, ["a b"], metadata={}, special=special, config=config)
            for key in ("x", "y")
        ]
        ids = rows[0].segments[0].tolist()
        assert ids == rows[1].segments[0].tolist()
        block = [13, 18, 15, 14]
        found[{6: "first" if ids[2:] == block else "behind", 4: "alone"}[len(ids)]] += 1
        assert ids in ([1, 2, *block], [*block, 1, 2], block)
    assert found["behind"] / 4000 == pytest.approx(0.3, abs=0.03)
    assert found["alone"] / 4000 == pytest.approx(0.7 * 0.2, abs=0.02)


def test_pages_keep_their_order_and_are_not_taken_for_pairs() -> None:
    config = TokenizeImagesConfig(image_size_px=32, seed=5, caption_drop=1.0)
    special = SpecialIds.after(10, num_codes=4)
    one, two = (CodedImage(np.array([code], np.int32), bytes([code]) * 32) for code in (1, 2))
    text = np.array([7], np.int32)
    row = coded_row("p", [one, text, two], ["t"], metadata={}, special=special, config=config)
    assert row.segments[0].tolist() == [13, 16, 14, 7, 13, 17, 14]
    other = coded_row("p", [one, text, one], ["t"], metadata={}, special=special, config=config)
    assert row.content != other.content


def test_an_image_that_cannot_be_read_takes_its_document_along(tmp_path: Path) -> None:
    root, folder = tmp_path / "store", tmp_path / "raw"
    folder.mkdir()
    from PIL import Image as Pil

    for name in ("a", "b"):
        Pil.new("RGB", (40, 40), "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"caption {name}")
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "c.txt").write_text("caption c")
    listing = make(root, "data_pipelines.sources.image_folder", {"path": str(folder)})
    tokens = make(
        root,
        "data_pipelines.tokenize_images",
        {"image_size_px": 32, "seed": 1},
        {
            "documents": listing,
            "tokenizer": tokenizer_of(root, shapes(root)),
            "autoencoder": make_autoencoder(root, codebook_size=CODES),
        },
        launch=in_process,
    )
    assert len(rows_of(tokens)) == 2
    assert read_rejects(tokens)["key"].to_pylist() == ["c.png"]


def test_an_autoencoder_without_a_codebook_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with pytest.raises(ArtifactError, match="has no codebook"):
        coded(root, shapes(root), make_autoencoder(root))
