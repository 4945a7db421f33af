"""Tables of each kind come back as they went in, sorted, whatever the order of the rows."""

import hashlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from transfusion.artifacts.latents import LATENTS_RAW, LatentRow, latent_rows, latents_table
from transfusion.artifacts.pixels import PixelRow, pixel_rows, pixels_table
from transfusion.artifacts.shards import Reject, count_reasons, rejects_table
from transfusion.artifacts.tables import parquet_bytes
from transfusion.artifacts.tokens import TokenRow, token_rows, tokens_table
from transfusion.sequence.draws import Draws, uniform
from transfusion.sequence.held_out import held_out, is_held_out


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def stored(table, raw=()):
    return pq.read_table(io.BytesIO(parquet_bytes(table, raw_columns=raw)))


def test_tokens_come_back_segment_by_segment() -> None:
    rows = [
        TokenRow(
            key=key,
            layout=layout,
            segments=tuple(np.arange(n, dtype=np.int32) + 7 for n in lengths),
            content=sha(key),
            num_bytes=sum(lengths),
        )
        for key, layout, lengths in [("b", "tit", (3, 0)), ("a", "i", ()), ("c", "t", (70_000,))]
    ]
    back = token_rows(stored(tokens_table(rows)))
    assert [row.key for row in back] == ["a", "b", "c"]
    for row in back:
        given = next(r for r in rows if r.key == row.key)
        assert (row.layout, row.content, row.num_bytes) == (
            given.layout,
            given.content,
            given.num_bytes,
        )
        assert [s.tolist() for s in row.segments] == [s.tolist() for s in given.segments]


def test_latents_come_back_bit_by_bit_sorted_by_key_and_index() -> None:
    rng = np.random.default_rng(0)
    rows = [
        LatentRow(
            key=key,
            image_index=index,
            mean=rng.normal(size=(4, 2, 3)).astype(np.float16),
            std=rng.random(size=(4, 2, 3)).astype(np.float16),
            original_height=20,
            original_width=30,
            sha256=sha(f"{key}{index}"),
            phash=2**64 - 1 - index,
        )
        for key, index in [("b", 1), ("b", 0), ("a", 0)]
    ]
    back = latent_rows(stored(latents_table(rows), LATENTS_RAW), channels=4)
    assert [(row.key, row.image_index) for row in back] == [("a", 0), ("b", 0), ("b", 1)]
    for row in back:
        given = next(r for r in rows if (r.key, r.image_index) == (row.key, row.image_index))
        assert row.mean.tobytes() == given.mean.tobytes()
        assert row.std.tobytes() == given.std.tobytes()
        assert row.mean.shape == (4, 2, 3)
        assert (row.sha256, row.phash) == (given.sha256, given.phash)
    # The order in which rows were made does not show in the file.
    assert parquet_bytes(latents_table(rows)) == parquet_bytes(latents_table(rows[::-1]))


def test_pixels_come_back_with_caption_and_metadata() -> None:
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    given = PixelRow(
        key="k",
        image_index=0,
        sha256=sha("k"),
        caption="é",
        metadata={"b": [1, 2.5]},
        pixels=square,
    )
    [row] = pixel_rows(stored(pixels_table([given])), 8)
    assert (row.pixels == square).all()
    assert (row.caption, row.metadata, row.sha256) == ("é", {"b": [1, 2.5]}, given.sha256)


def test_a_reject_whose_name_is_no_text_is_still_named() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    rejects = [
        Reject("b", "truncated", "x"),
        Reject(name, "truncated", name),
        Reject("a", "bomb", "y"),
    ]
    table = stored(rejects_table(rejects)).to_pylist()
    assert [row["key"] for row in table] == ["a", "b", "caf\\udce9.png"]
    assert count_reasons(rejects) == {"bomb": 1, "truncated": 2}


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5])
def test_the_asked_share_is_held_out_one_by_one_or_together(fraction: float) -> None:
    digests = [sha(str(i)) for i in range(20_000)]
    together = held_out(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), fraction)
    assert [is_held_out(digest, fraction) for digest in digests[:200]] == together[:200].tolist()
    assert abs(together.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 20_000) + 1e-9
    more = held_out(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), fraction + 0.1)
    assert not (together & ~more).any(), "a larger share holds out what a smaller one did"


def test_draws_depend_on_their_counters_and_on_nothing_else() -> None:
    one, other = Draws(5, 1), Draws(5, 1)
    expected = [one.at(epoch, document).standard_normal(4) for epoch, document in [(0, 1), (1, 0)]]
    other.at(9, 9, 9).random(1001)
    assert (other.at(1, 0).standard_normal(4) == expected[1]).all()
    assert (other.at(0, 1).standard_normal(4) == expected[0]).all()
    assert not np.isin(expected[0], expected[1]).any()
    assert not (Draws(6, 1).at(0, 1).standard_normal(4) == expected[0]).any()
    assert not (Draws(5, 2).at(0, 1).standard_normal(4) == expected[0]).any()
    # The counters are Philox's own, so its published stream is the reference.
    philox = np.random.Philox(
        key=np.array([5, 1], np.uint64), counter=np.array([0, 0, 1, 0], np.uint64)
    )
    assert (np.random.Generator(philox).standard_normal(4) == expected[0]).all()


def test_uniform_draws_are_uniform_and_independent_of_their_neighbours() -> None:
    first = np.repeat(np.arange(200, dtype=np.uint64), 200)
    second = np.tile(np.arange(200, dtype=np.uint64), 200)
    drawn = uniform(0, 3, first, second)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    # Chi-squared with 19 degrees of freedom: above 43.8 once in a thousand.
    assert ((counts - 2000) ** 2 / 2000).sum() < 43.8
    for neighbour in (drawn[1:], drawn[200:]):
        assert abs(np.corrcoef(drawn[: len(neighbour)], neighbour)[0, 1]) < 0.02
    assert (uniform(0, 3, first[::-1], second[::-1])[::-1] == drawn).all()
