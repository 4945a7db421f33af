"""Ray Train around the loop. Each fit takes seconds to start, so there are few."""

import json
import logging
import re
import signal

import pytest
import ray
from ray import PlacementGroupID
from ray.util.placement_group import (
    PlacementGroup,
    placement_group_table,
    remove_placement_group,
)

from tests.train.outcomes import assert_same_weights, rows
from tests.train.worlds import config, in_world, stage_context, train_and_keep
from transfusion.errors import ArtifactError
from transfusion.resources import Resources, TrainResources
from transfusion.train.on_ray.worker import train_on_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def fit(folder, marker, number=signal.SIGKILL, train=None, victim="worker"):
    context = stage_context(folder, Resources(train=train or TrainResources()))
    values = {
        **config().resolved(),
        "case": {"marker": marker, "signal": int(number), "victim": victim},
    }
    return train_on_ray(
        "tests.train.worlds:build", values, {}, context, steps=config().steps, lanes=4
    )


def test_a_killed_worker_costs_steps_but_changes_nothing(ray_cluster, tmp_path, caplog):
    """Two workers; one is killed near step 4; the group starts again from the newest checkpoint."""
    folder = tmp_path / "killed"
    folder.mkdir()
    with caplog.at_level(logging.INFO, "transfusion"):
        made = fit(folder, marker=str(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    # Batches are read ahead, so the kill falls before or after step 4's checkpoint.
    assert re.search("resumed after step [24] of 6", caplog.text)
    outcome = {"files": [file.model_dump() for file in made.files]}

    in_world(2, train_and_keep, tmp_path)
    undisturbed = json.loads((tmp_path / "outcome.json").read_text())
    assert rows(folder, outcome) == rows(tmp_path, undisturbed)
    assert_same_weights((folder, outcome), (tmp_path, undisturbed))
    assert not list(folder.glob("run/*/lease.json"))


def test_a_loss_that_is_no_number_reaches_the_user_as_words_and_is_not_tried_again(
    ray_cluster, tmp_path, caplog
):
    with pytest.raises(ArtifactError, match=r"step 3: loss nan.*lane 0: document-3-0-0"):
        fit(tmp_path, marker="")
    assert "resumed" not in caplog.text


def test_a_worker_that_is_to_go_saves_first_and_the_group_starts_again(
    ray_cluster, tmp_path, caplog
):
    """As where a pod is evicted: no step is lost, where SIGKILL costs those since the last checkpoint."""
    with caplog.at_level(logging.INFO, "transfusion"):
        made = fit(tmp_path, marker=str(tmp_path / "marker"), number=signal.SIGTERM)
    assert re.search("resumed after step [345] of 6", caplog.text)
    assert made.metrics["train.loss"] > 0


def test_a_range_of_workers_starts_with_those_that_there_is_room_for(ray_cluster, tmp_path, caplog):
    """At most four on two CPUs; one is killed, and the group that starts again is a range as well."""
    folder = tmp_path / "ranged"
    folder.mkdir()
    with caplog.at_level(logging.INFO, "transfusion"):
        ranged = TrainResources(num_workers=4, min_workers=1)
        made = fit(folder, marker=str(tmp_path / "marker"), train=ranged)
    assert "2 of at most 4 workers" in caplog.text
    assert re.search("resumed after step [24] of 6", caplog.text)
    in_world(2, train_and_keep, tmp_path)
    fixed = json.loads((tmp_path / "outcome.json").read_text())
    outcome = {"files": [file.model_dump() for file in made.files]}
    assert rows(folder, outcome) == rows(tmp_path, fixed)


def free_places():
    """Of a controller that is dead; Ray's own cleaner does it where there is a dashboard to ask."""
    for group, about in placement_group_table().items():
        if about["state"] == "CREATED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def test_a_killed_controller_ends_the_run_and_the_same_command_goes_on(
    ray_cluster, tmp_path, caplog
):
    """The last here: Ray keeps what the dead one had asked for from ranges of workers, for three minutes."""
    marker = str(tmp_path / "marker")
    with pytest.raises(ray.exceptions.ActorDiedError):
        fit(tmp_path, marker=marker, victim="controller")
    free_places()
    with caplog.at_level(logging.INFO, "transfusion"):
        made = fit(tmp_path, marker=marker)
    assert re.search("resumed after step [24] of 6", caplog.text)
    assert [
        row["step"] for row in rows(tmp_path, {"files": [f.model_dump() for f in made.files]})
    ] == list(range(1, 7))
