"""The files of a plan: a lane's sequences in blocks whose size does not grow with the number of lanes."""

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.mix import plan as planning
from data_pipelines.mix import reading
from data_pipelines.mix.plan import SEQUENCES_PER_BLOCK, SEQUENCES_PER_FILE, steps_per_block
from tests.mixes import mix, pair, plan_files, prose
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.mixture import read_mixture
from transfusion.artifacts.tables import load_table
from transfusion.errors import ArtifactError
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
            lane = int(file.name.split("/")[1])
            for row in load_table(made.store, file).to_pylist():
                found[row["step"], lane, row["slot"]] = row["references"]
    return found


def test_shorter_blocks_hold_the_same_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"lanes": 3, "sequences_per_micro_batch": 2, "num_steps": 40}
    whole = mix(tmp_path / "whole", DOCS, **options)
    monkeypatch.setattr(planning, "SEQUENCES_PER_BLOCK", 50)
    parted = mix(tmp_path / "parted", DOCS, **options)
    assert read_mixture(whole).steps_per_block == SEQUENCES_PER_FILE // 2
    assert read_mixture(parted).steps_per_block == 50 // 3 // 2
    assert [len(part) for part in plan_files(parted)] == [16] * 15
    assert len(sequences(whole)) == 240
    assert sequences(whole) == sequences(parted)


@pytest.mark.parametrize(
    ("lanes", "per", "steps"), [(1, 4, 512), (128, 4, 512), (512, 4, 128), (4096, 64, 1)]
)
def test_a_block_holds_so_many_sequences_however_many_lanes_there_are(
    lanes: int, per: int, steps: int
) -> None:
    shape = Shape(sequence_length=64, sequences_per_micro_batch=per, lanes=lanes)
    assert steps_per_block(shape) == steps
    assert steps * per * lanes <= SEQUENCES_PER_BLOCK


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
