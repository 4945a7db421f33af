"""The files of a plan: some lanes' sequences, in blocks whose size does not grow with the number of lanes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.mix import plan as planning
from data_pipelines.mix import reading
from data_pipelines.mix.plan import (
    SEQUENCES_PER_BLOCK,
    SEQUENCES_PER_FILE,
    SEQUENCES_PER_LANE,
    lanes_per_file,
    steps_per_block,
)
from tests.mixes import mix, pair, prose
from transfusion.artifacts import tables
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import References, read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError
from transfusion.ingest import plan as ingest_plan
from transfusion.ingest.cache import Cache
from transfusion.ingest.plan import Piece, PlanReader
from transfusion.sequence.shape import Shape

DOCS = {
    "pairs": [pair(f"{i:02d}", tokens=1 + i % 5) for i in range(60)],
    "prose": [prose(f"{i:02d}", tokens=9 * i) for i in range(30)],
}


def sequences(made: Artifact) -> dict[tuple[int, int, int], bytes]:
    """References of each sequence by step, lane and slot."""
    found = {}
    for file in made.manifest.content.files:
        if file.name.startswith("train/"):
            for row in load_table(made.store, file).to_pylist():
                found[row["step"], row["lane"], row["slot"]] = row["references"]
    return found


def rows_of_files(made: Artifact) -> list[int]:
    return [
        file.rows or 0 for file in made.manifest.content.files if file.name.startswith("train/")
    ]


def test_shorter_blocks_hold_the_same_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"lanes": 3, "sequences_per_micro_batch": 2, "num_steps": 40}
    whole = mix(tmp_path / "whole", DOCS, **options)
    monkeypatch.setattr(planning, "SEQUENCES_PER_BLOCK", 50)
    parted = mix(tmp_path / "parted", DOCS, **options)
    assert read_mixture(whole).steps_per_block == SEQUENCES_PER_LANE // 2
    assert read_mixture(parted).steps_per_block == 50 // 3 // 2
    assert (rows_of_files(whole), rows_of_files(parted)) == ([240], [48] * 5)
    assert len(sequences(whole)) == 240
    assert sequences(whole) == sequences(parted)


@pytest.mark.parametrize(
    ("per_file", "rows"), [(1, [16] * 9 + [12] * 3), (40, [32, 16] * 3 + [24, 12])]
)
def test_a_lane_is_read_from_a_file_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_file: int, rows: list[int]
) -> None:
    options: dict[str, Any] = {"lanes": 3, "sequences_per_micro_batch": 2, "num_steps": 30}
    monkeypatch.setattr(planning, "SEQUENCES_PER_BLOCK", 50)
    monkeypatch.setattr(planning, "SEQUENCES_PER_FILE", per_file)
    for module in (tables, ingest_plan):  # groups that end within a lane and within a micro-batch
        monkeypatch.setattr(module, "ROWS_PER_GROUP", 5)
    made = mix(tmp_path / "store", DOCS, **options)
    assert rows_of_files(made) == rows
    wanted, reader = sequences(made), PlanReader(made, read_mixture(made), Cache(2**20))
    assert len(wanted) == 180
    for step in range(30):
        for lane in range(3):
            read = reader.sequences(step, lane)
            assert [packed(pieces) for pieces in read] == [
                wanted[step, lane, slot] for slot in (0, 1)
            ]


def packed(pieces: list[Piece]) -> bytes:
    """References of a sequence as they are stored."""
    columns = [np.array(column) for column in zip(*pieces, strict=True)]
    return References(**dict(zip(Piece._fields, columns, strict=True))).to_words().tobytes()


@pytest.mark.parametrize(
    ("lanes", "per", "steps"), [(1, 4, 512), (128, 4, 512), (512, 4, 128), (4096, 64, 1)]
)
def test_a_block_holds_so_many_sequences_however_many_lanes_there_are(
    lanes: int, per: int, steps: int
) -> None:
    shape = Shape(sequence_length=64, sequences_per_micro_batch=per, lanes=lanes)
    assert steps_per_block(shape) == steps
    assert steps * per * lanes <= SEQUENCES_PER_BLOCK
    together = lanes_per_file(shape)
    assert together == min(lanes, SEQUENCES_PER_FILE // (steps * per))


def test_an_end_before_the_first_step_is_an_error_and_no_empty_plan(tmp_path: Path) -> None:
    few = {"prose": DOCS["prose"][:3]}
    with pytest.raises(
        ArtifactError, match=r"all sources are exhausted at step 0 of 12: .*max_epochs"
    ):
        mix(
            tmp_path / "store",
            few,
            sources={"prose": {"when_exhausted": "end", "max_epochs": 0.1}},
            num_steps=12,
        )


def test_more_shards_than_a_reference_tells_apart_are_refused_before_any_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_SHARDS", 11)
    with pytest.raises(ArtifactError, match=r"they have 12 shards in all, .* at most 11 apart"):
        mix(tmp_path / "store", DOCS)
    monkeypatch.setattr(reading, "MAX_SHARDS", 12)
    mix(tmp_path / "store", DOCS)
