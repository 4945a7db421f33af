"""Workers in groups: each group shards the weights, groups hold copies (HSDP)."""

import contextlib
import itertools
import json
import sys

import pytest
import torch.distributed as dist
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from tests.train.outcomes import assert_same, rows
from tests.train.worlds import MadeUpSource, config, in_world, make_trainee, train
from transfusion.errors import ArtifactError
from transfusion.resources import TrainResources
from transfusion.train.stop import StoppedError

NUM_SHARDED = config().model.depth + 1
"""Blocks, and the rest."""


@contextlib.contextmanager
def all_reduced_gradients():
    """Sizes of the messages in which FSDP adds up gradients between copies."""
    found, plain = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        if "fsdp" in sys._getframe(1).f_code.co_filename:
            found.append(tensor.numel())
        return plain(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        yield found
    finally:
        dist.all_reduce = plain


def in_turns(folder):
    """Four workers: a whole run in one group, one in two groups, and one that changes from groups to none."""
    source = MadeUpSource(lanes=8)  # two micro-batches a rank
    one, groups = TrainResources(), TrainResources(shard_group_size=2)
    settings = config(steps=4)
    outcomes = {"one": train(folder / "one", settings=settings, source=source, resources=one)}
    with all_reduced_gradients() as exchanged:
        outcomes["groups"] = train(
            folder / "groups", settings=settings, source=source, resources=groups
        )
    assert len(exchanged) == settings.steps * NUM_SHARDED, "once a step, not once a micro-batch"
    weight = make_trainee(settings, source, groups).model.blocks[0].ffn.out.weight
    assert weight.device_mesh.shape == (2, 2)
    assert weight.to_local().shape[0] == weight.shape[0] // 2
    for name, first, second in (("joined", groups, one), ("split", one, groups)):
        asked = itertools.count()
        with contextlib.suppress(StoppedError):
            train(
                folder / name,
                settings=settings,
                source=source,
                resources=first,
                stop=lambda asked=asked: next(asked) >= 1,
            )
        outcomes[name] = train(folder / name, settings=settings, source=source, resources=second)
    with pytest.raises(ArtifactError, match="4 workers in groups of 3: 1 would be left over"):
        make_trainee(settings, source, TrainResources(shard_group_size=3))
    if dist.get_rank() == 0:
        (folder / "outcomes.json").write_text(json.dumps(outcomes))


def test_groups_take_the_steps_of_one_and_read_each_others_checkpoints(tmp_path):
    in_world(4, in_turns, tmp_path)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    found = {name: rows(tmp_path / name, outcome) for name, outcome in outcomes.items()}
    expected = found.pop("one")
    assert len(expected) == 4
    for name, steps in found.items():
        for row, by_one in zip(steps, expected, strict=True):
            assert row == pytest.approx(by_one, rel=1e-5), name
            assert row["loss"] == pytest.approx(by_one["loss"], rel=1e-6), name


@contextlib.contextmanager
def gathered_weights():
    """How often FSDP gathers the weights of a module."""
    found, plain = [], FSDPParamGroup.unshard

    def counted(group, *args, **kwargs):
        if not group.is_unsharded:
            found.append(group)
        return plain(group, *args, **kwargs)

    FSDPParamGroup.unshard = counted
    try:
        yield found
    finally:
        FSDPParamGroup.unshard = plain


def hold(folder):
    """Two workers with four micro-batches each: weights are gathered for each, or once."""
    source, settings, outcomes = MadeUpSource(lanes=8), config(steps=4), {}
    for gathered_for in ("layer", "step"):
        resources = TrainResources(gathered_for=gathered_for)
        with gathered_weights() as found:
            make_trainee(settings, source, resources).forward_backward(0)
        # With a layer's: there and back; the last layers are still there when the way back begins.
        outcomes[f"{gathered_for} gathers"] = len(found)
        outcomes[gathered_for] = train(
            folder / gathered_for, settings=settings, source=source, resources=resources
        )
    if dist.get_rank() == 0:
        (folder / "outcomes.json").write_text(json.dumps(outcomes))


def test_weights_held_for_a_step_are_gathered_once_and_change_nothing(tmp_path):
    in_world(2, hold, tmp_path)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert_same(*((tmp_path / name, outcomes[name]) for name in ("layer", "step")))
    assert outcomes["step gathers"] == NUM_SHARDED
    assert outcomes["layer gathers"] >= 4 * NUM_SHARDED
