"""Any number of workers, started at any step, sees the same global batches; in any order, in bounded memory."""

import hashlib
import threading
import tracemalloc
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks.corpus import make_plan
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import row_entries
from transfusion.ingest.cache import Cache
from transfusion.ingest.reader import MixtureReader
from transfusion.sequence.batch import PackedBatch
from transfusion.train.parallel import lanes_of

STEPS, LANES = 12, 4
MIB = 2**20


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_plan(
        tmp_path_factory.mktemp("elastic") / "store",
        num_pairs=300,
        num_texts=20,
        latent=(2, 4, 4),
        rows_per_shard=40,
        sequence_length=64,
        sequences_per_micro_batch=2,
        lanes=LANES,
        num_steps=STEPS,
        caption_drop=0.5,
    )


def digest(batch: PackedBatch) -> str:
    values = [getattr(batch, field.name) for field in fields(batch)]
    parts = [value.numpy().tobytes() for value in values if value is not None]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def expected(mixture: Artifact) -> dict[tuple[int, int], str]:
    """Every batch of the plan, as one worker reads it from the beginning."""
    reader = MixtureReader(mixture, seed=5)
    return {
        (step, lane): digest(reader.micro_batch(step, lane))
        for step in range(STEPS)
        for lane in range(LANES)
    }


@settings(max_examples=10, deadline=None)
@given(
    worlds=st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 4)), min_size=1, max_size=3
    ),
    start=st.integers(0, STEPS - 1),
)
def test_workers_that_come_and_go_see_the_same_global_batches(
    mixture: Artifact,
    expected: dict[tuple[int, int], str],
    worlds: list[tuple[int, int]],
    start: int,
) -> None:
    """A run that is resumed with another number of workers after every few steps."""
    for world_size, steps in worlds:
        seen = {}
        for rank in range(world_size):
            worker = MixtureReader(mixture, seed=5, threads=2)
            for step in range(start, min(start + steps, STEPS)):
                for lane in lanes_of(rank, world_size=world_size, lanes=LANES):
                    if lane is not None:
                        assert (step, lane) not in seen
                        seen[step, lane] = digest(worker.micro_batch(step, lane))
        steps_seen = range(start, min(start + steps, STEPS))
        assert seen == {(s, lane): expected[s, lane] for s in steps_seen for lane in range(LANES)}
        start = (start + steps) % STEPS


@settings(max_examples=8, deadline=None)
@given(
    places=st.lists(
        st.tuples(st.integers(0, STEPS - 1), st.integers(0, LANES - 1)), min_size=1, max_size=20
    ),
    cache_bytes=st.sampled_from([1, 20_000, MIB]),
)
def test_a_batch_does_not_depend_on_what_was_read_before(
    mixture: Artifact,
    expected: dict[tuple[int, int], str],
    places: list[tuple[int, int]],
    cache_bytes: int,
) -> None:
    reader = MixtureReader(mixture, seed=5, cache_bytes=cache_bytes)
    for place in places:
        assert digest(reader.micro_batch(*place)) == expected[place]


def test_memory_is_bounded_over_many_shards(tmp_path: Path) -> None:
    mixture = make_plan(
        tmp_path / "store",
        num_pairs=600,
        num_texts=20,
        latent=(8, 32, 32),
        rows_per_shard=25,
        sources={"pairs": {"tokens": "captions", "latents": "latents"},
                 "prose": {"tokens": "tokens", "weight": 0.05}},
        sequence_length=4096,
        sequences_per_micro_batch=1,
        lanes=1,
        num_steps=40,
        shuffle_window=50,
    )  # fmt: skip
    assert len(row_entries(mixture.input("latents"))) == 24
    latents_bytes = 600 * 2 * 2 * 8 * 32 * 32

    def peak_bytes(cache_bytes: int) -> int:
        """Of what was read and is kept, and of what numpy made of it."""
        reader = MixtureReader(mixture, seed=0, cache_bytes=cache_bytes)
        before, peak = pa.total_allocated_bytes(), 0
        tracemalloc.start()
        try:
            for step in range(reader.steps):
                reader.micro_batch(step, 0)
                peak = max(peak, pa.total_allocated_bytes() - before)
                assert reader.cache.bytes <= cache_bytes
            return peak + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(64 * MIB) > latents_bytes
    # The cache, half as much of batches that wait, and what four threads are at.
    assert peak_bytes(3 * MIB) < 10 * MIB < latents_bytes


def test_a_cache_loads_once_what_threads_ask_for_together_and_keeps_what_was_used_last() -> None:
    cache = Cache(30)
    loaded: list[str] = []
    begun, go_on = threading.Barrier(4), threading.Event()

    def slow() -> tuple[str, int]:
        loaded.append("a")
        go_on.wait(10)
        return "A", 10

    def ask() -> None:
        begun.wait(10)
        found.append(cache.get("a", slow))

    found: list[str] = []
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    # Another thing is loaded meanwhile.
    assert cache.get("b", lambda: ("B", 10)) == "B"
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert (found, loaded) == (["A"] * 3, ["a"])

    def load(name: str) -> str:
        def read() -> tuple[str, int]:
            loaded.append(name)
            return name.upper(), 10

        return cache.get(name, read)

    load("c")
    load("b")
    load("d")  # takes the place of "a", which was used longest ago
    assert cache.bytes == 30
    loaded.clear()
    assert [load(name) for name in "bcda"] == ["B", "C", "D", "A"]
    assert loaded == ["a"]


def test_a_load_that_fails_is_told_to_all_and_tried_again() -> None:
    cache = Cache(30)

    def fail() -> tuple[str, int]:
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            cache.get("a", fail)
    assert cache.get("a", lambda: ("A", 1)) == "A"


def test_a_cache_too_small_for_the_shuffle_window_is_told_once(
    mixture: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    def told(cache_bytes: int) -> int:
        caplog.clear()
        for _ in range(2):
            reader = MixtureReader(mixture, seed=5, cache_bytes=cache_bytes, threads=1)
            for step in range(STEPS):
                for lane in range(LANES):
                    reader.micro_batch(step, lane)
        return sum("smaller shuffle_window" in record.message for record in caplog.records)

    assert told(64 * MIB) == 0
    assert told(50_000) == 2
