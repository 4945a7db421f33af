"""Weights as safetensors with one tensor in memory at a time: `save_file` wants all of them at once.

https://huggingface.co/docs/safetensors: 8 bytes for the header's length, the header as JSON, the tensors' bytes.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfusion.errors import ArtifactError

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U8": torch.uint8,
}
"""What is written, by its name in the header; in the order in which `save_file` puts tensors in a file."""

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LazyTensors:
    """Tensors by name, each made when it is asked for and not kept.

    Attributes:
        like: Tensors of the same names, shapes and types, whose values are not looked at.
    """

    def __init__(self, like: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        self.like = like
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)


Tensors = LazyTensors | Mapping[str, Tensor]
"""What can be written: tensors that are made one by one, or that are there."""


def read_tensors(place: Path, *, dtype: torch.dtype | None = None) -> LazyTensors:
    """A file's tensors, cast to `dtype` where it is given."""
    from safetensors import safe_open

    file: Any = safe_open(place, framework="pt")
    like = likes(file)
    if dtype is None:
        return LazyTensors(like, file.get_tensor)
    cast = {name: tensor.to(dtype) for name, tensor in like.items()}
    return LazyTensors(cast, lambda name: file.get_tensor(name).to(dtype))


def likes(file: Any) -> dict[str, Tensor]:
    """Shape and type of every tensor of an opened file, as tensors without values."""
    parts = {name: file.get_slice(name) for name in sorted(file.keys())}
    return {
        name: torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")
        for name, part in parts.items()
    }


def file_order(tensors: Tensors) -> list[str]:
    """Names in the order of their bytes in a file: the widest types first, then by name."""
    like = like_of(tensors)
    rank = {dtype: index for index, dtype in enumerate(NAMES)}
    return sorted(like, key=lambda name: (rank[like[name].dtype], name))


def like_of(tensors: Tensors) -> Mapping[str, Tensor]:
    """Tensors to ask for shapes and types, of which none is made for it."""
    return tensors.like if isinstance(tensors, LazyTensors) else tensors


def write_tensors(place: Path, tensors: Tensors) -> None:
    """Writes what `save_file` would, to the byte; tensors are asked for one by one, in `file_order`.

    Raises:
        ArtifactError: A tensor came otherwise than it was described.
    """
    like, order = like_of(tensors), file_order(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + like[name].numel() * like[name].element_size()
        header[name] = {
            "dtype": NAMES[like[name].dtype],
            "shape": list(like[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The first tensor begins at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with place.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            # Not held by a name here: it would still be there while the next one is made.
            file.write(_bytes(tensors[name], like[name], where=f"{place}: {name}"))


def _bytes(tensor: Tensor, like: Tensor, *, where: str) -> memoryview:
    if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
        raise ArtifactError(
            f"{where}: was described as {like.dtype} {list(like.shape)} and came as {tensor.dtype} "
            f"{list(tensor.shape)}; describe it as it is read"
        )
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
