"""A run's weights go to files one tensor at a time, however many ranks hold them."""

import gc
import json
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save
from torch.distributed.tensor import DTensor

from tests.train.worlds import MadeUpSource, config, in_world, make_trainee
from transfusion.train.parallel import AveragedWeights, gather, local
from transfusion.train.sharded import AVERAGED_NAME, RAW_NAME

FILES = (RAW_NAME, AVERAGED_NAME)


def held_bytes() -> int:
    """Of every tensor that came since the collector was frozen, storages that are shared counted once."""
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def export(folder: Path) -> None:
    """Writes a fresh model, and what rank 0 held whenever it asked for a whole tensor."""
    trainee = make_trainee(config(), MadeUpSource())
    averaged = AveragedWeights(trainee.model)
    for tensor in averaged.weights.values():
        local(tensor).mul_(1 / 3)
    whole, held, alive = [], [], []
    actual = DTensor.full_tensor

    def spy(tensor: DTensor) -> torch.Tensor:
        held.append(held_bytes())
        alive.append(sum(array() is not None for array in whole))
        # The tensor's memory is this array's: it is there for as long as anything of it is.
        array = actual(tensor).detach().numpy().copy()
        whole.append(weakref.ref(array))
        return torch.from_numpy(array)

    folder.mkdir(exist_ok=True)
    gc.freeze()
    DTensor.full_tensor = spy
    try:
        trainee.write(folder, averaged=averaged)
    finally:
        DTensor.full_tensor = actual
        gc.unfreeze()
    for name, weights in zip(
        FILES, (dict(trainee.model.named_parameters()), averaged.weights), strict=True
    ):
        gathered = gather(weights)
        if dist.get_rank() == 0:
            (folder / f"{name}.expected").write_bytes(save(gathered, metadata={"format": "pt"}))
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps([held, alive]))


def test_ranks_write_what_one_does_and_hold_one_whole_tensor_at_a_time(world, tmp_path):
    export(tmp_path / "1")
    in_world(2, export, tmp_path / "2")
    for name in FILES:
        written = (tmp_path / "1" / name).read_bytes()
        assert written == (tmp_path / "2" / name).read_bytes()
        # As safetensors writes the whole model, which is what was written before.
        assert written == (tmp_path / "1" / f"{name}.expected").read_bytes()
    raw, averaged = (load_file(tmp_path / "2" / name) for name in FILES)
    assert all(torch.equal(raw[name].mul(1 / 3), averaged[name]) for name in raw)
    held, alive = json.loads((tmp_path / "2" / "seen.json").read_text())
    assert len(held) == 2 * len(raw)
    assert set(alive) == {0}
    # A tensor or two may wait for the collector, never the model.
    assert max(held) < sum(tensor.nbytes for tensor in raw.values()) / 4
