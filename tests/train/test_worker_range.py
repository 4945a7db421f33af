"""A number of workers that may change: what a profile may say, and what Ray Train is asked for."""

from pathlib import Path

import pytest
import ray
from ray.train import PreemptionInfo

from transfusion.errors import SpecError
from transfusion.resources import TrainResources
from transfusion.runner.profile import Profile, misfits, read_profile
from transfusion.train.on_ray.room import room, scaling
from transfusion.train.on_ray.worker import preemption


def read(folder: Path, train: str) -> TrainResources:
    (folder / "profile.yaml").write_text(f"train: {{{train}}}\n")
    return read_profile(folder / "profile.yaml").train


@pytest.mark.parametrize(
    ("train", "asked", "elastic"),
    [
        ("num_workers: 8", 8, False),
        ("num_workers: 8, min_workers: 8", 8, False),
        ("num_workers: 8, min_workers: 4", (4, 8), True),
        ("num_workers: 32, min_workers: 8, shard_group_size: 8, gpus_per_worker: 1", (8, 32), True),
    ],
)
def test_ray_is_asked_for_a_number_or_for_a_range(tmp_path, train, asked, elastic):
    made = scaling(read(tmp_path, train))
    assert made.num_workers == asked
    assert made.elasticity_enabled == elastic
    expected = {"CPU": 1.0, "GPU": 1.0} if "gpus" in train else {"CPU": 1.0}
    assert made.resources_per_worker == expected
    assert made.use_gpu == ("gpus" in train)


def test_what_workers_need_is_told_beside_what_the_cluster_has(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    ranged = read(tmp_path, "num_workers: 4, min_workers: 2, gpus_per_worker: 1")
    assert (
        room(ranged) == "2 to 4 workers need 1 CPU and 1 GPU each; free are 3 of 16 CPU, 0 of 2 GPU"
    )
    fixed = read(tmp_path, "num_workers: 4, cpus_per_worker: 0.5")
    assert room(fixed) == "4 workers need 0.5 CPU each; free are 3 of 16 CPU"


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ("num_workers: 4, min_workers: 5", "train: min_workers must be at most num_workers, got 5"),
        ("num_workers: 4, min_workers: 0", "train.min_workers: .*greater than or equal to 1"),
        (
            "num_workers: 8, min_workers: 2, shard_group_size: 4",
            "train: shard_group_size must divide both ends .* got 4 for 2 to 8",
        ),
        ("num_workers: 9, min_workers: 4, shard_group_size: 4", "got 4 for 4 to 9"),
    ],
)
def test_a_range_that_cannot_be_is_told_with_its_remedy(tmp_path, train, told):
    with pytest.raises(SpecError, match=told):
        read(tmp_path, train)


def test_a_number_between_that_groups_do_not_fill_shards_over_all():
    ranged = TrainResources(num_workers=16, min_workers=4, shard_group_size=4)
    assert [ranged.shard_group_for(workers) for workers in (4, 6, 8, 15, 16)] == [
        4,
        None,
        4,
        None,
        4,
    ]
    fixed = TrainResources(num_workers=6, shard_group_size=4)
    assert fixed.shard_group_for(6) == 4, "to be refused where the mesh is made, with the divisors"


def test_machines_need_to_hold_the_fewest_workers_only():
    cluster = {"cpu": {"cpus": 4, "max": 2}}
    values = {"num_workers": 100, "cpus_per_worker": 1}
    for fewest, faults in ((8, 0), (9, 1)):
        train = values | {"min_workers": fewest}
        profile = Profile.model_validate({"train": train, "cluster": cluster})
        assert len(misfits(profile, "rayjob")) == faults


def test_every_machine_that_is_to_go_asks_for_one_checkpoint(monkeypatch):
    def going(*nodes: str) -> PreemptionInfo:
        return PreemptionInfo(
            deadline_ms=None, preempted_node_to_ranks={node: [0] for node in nodes}
        )

    told = iter([None, going("a"), going("a"), going("a", "b"), going("a", "b")])
    monkeypatch.setattr("ray.train.get_preemption_info", lambda: next(told))
    noticed = preemption()
    assert [noticed() for _ in range(5)] == [False, True, False, True, False]
