"""What is written tensor by tensor is what safetensors writes of all at once."""

import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save

from transfusion.errors import ArtifactError
from transfusion.model.weights_file import DTYPES, LazyTensors, read_tensors, write_tensors

TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    ).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([*DTYPES.values()]),
    st.integers(0, 99),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8).filter("__metadata__".__ne__), TENSORS))
def test_a_file_is_the_librarys_to_the_byte_and_is_read_back(tmp_path_factory, tensors):
    place = tmp_path_factory.mktemp("file") / "model.safetensors"
    write_tensors(place, tensors)
    assert place.read_bytes() == save(tensors, metadata={"format": "pt"})
    loaded, lazy = load_file(place), read_tensors(place)
    assert loaded.keys() == tensors.keys() == lazy.like.keys()
    with safe_open(place, framework="pt") as file:
        for name, tensor in tensors.items():
            for found in (loaded[name], lazy[name], file.get_tensor(name)):
                assert found.dtype == tensor.dtype
                assert found.shape == tensor.shape
                # Bits, since a value may be no number.
                assert (
                    found.contiguous()
                    .reshape(-1)
                    .view(torch.uint8)
                    .equal(tensor.reshape(-1).view(torch.uint8))
                )


def test_views_are_written_as_they_read(tmp_path):
    tensor = torch.arange(12.0).view(3, 4).T[1:]
    write_tensors(tmp_path / "file", {"turned": tensor})
    assert torch.equal(load_file(tmp_path / "file")["turned"], tensor)


def test_one_tensor_is_held_at_a_time_and_asked_for_once(tmp_path):
    alive, asked = [], []

    def read(name: str) -> torch.Tensor:
        assert not [1 for reference in alive if reference() is not None], name
        tensor = torch.ones(5)
        alive.append(weakref.ref(tensor))
        asked.append(name)
        return tensor

    like = {name: torch.empty(5, device="meta") for name in "cab"}
    write_tensors(tmp_path / "file", LazyTensors(like, read))
    assert asked == ["a", "b", "c"]


def test_a_cast_is_that_of_the_whole_file(tmp_path):
    weights = {"w": torch.randn(3, 2), "scalar": torch.tensor(1 / 3), "none": torch.empty(0, 2)}
    write_tensors(tmp_path / "raw", weights)
    write_tensors(tmp_path / "cast", read_tensors(tmp_path / "raw", dtype=torch.bfloat16))
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    assert (tmp_path / "cast").read_bytes() == save(expected, metadata={"format": "pt"})


def test_a_tensor_that_is_not_as_described_is_refused(tmp_path: Path):
    lazy = LazyTensors({"w": torch.empty(2, 3, device="meta")}, lambda _: torch.zeros(3, 2))
    with pytest.raises(ArtifactError, match=r"w: was described as torch.float32 \[2, 3\] and came"):
        write_tensors(tmp_path / "file", lazy)
