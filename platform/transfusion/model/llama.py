"""Weights of a Llama-family checkpoint in the layout of Hugging Face, under the names of our blocks.

A folder with `config.json` and safetensors, in one file or in several with an index. Queries, keys and values
are one matrix here, gate and up another. The rotation has the same order as theirs, so nothing is permuted. Only
what computes just what our blocks do is taken: anything else is refused by name. No pickle is read.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.model.llama_config import CONFIG, INDEX, SINGLE, read_json, transformer_config

Shape = tuple[int, ...]


def llama_tensors(
    config: ModelConfig, *, vocab_size: int, tied: bool
) -> dict[str, dict[str, Shape]]:
    """For each of our parameters the checkpoint's tensors that it is made of, one below the other.

    Args:
        tied: Whether the head is the table of embeddings.
    """
    dim, hidden = config.dim, config.hidden_dim
    queries, keys = (heads * config.head_dim for heads in (config.num_heads, config.kv_heads))
    table, gain = (vocab_size, dim), (dim,)
    embedding = "model.embed_tokens.weight"
    named: dict[str, dict[str, Shape]] = {"embedding.weight": {embedding: table}}
    for index in range(config.depth):
        theirs, ours = f"model.layers.{index}", f"blocks.{index}"
        attention, ffn = f"{theirs}.self_attn", f"{theirs}.mlp"
        named |= {
            f"{ours}.attention_norm.weight": {f"{theirs}.input_layernorm.weight": gain},
            f"{ours}.attention.qkv.weight": {
                f"{attention}.q_proj.weight": (queries, dim),
                f"{attention}.k_proj.weight": (keys, dim),
                f"{attention}.v_proj.weight": (keys, dim),
            },
            f"{ours}.attention.out.weight": {f"{attention}.o_proj.weight": (dim, queries)},
            f"{ours}.ffn_norm.weight": {f"{theirs}.post_attention_layernorm.weight": gain},
            f"{ours}.ffn.gate_up.weight": {
                f"{ffn}.gate_proj.weight": (hidden, dim),
                f"{ffn}.up_proj.weight": (hidden, dim),
            },
            f"{ours}.ffn.out.weight": {f"{ffn}.down_proj.weight": (dim, hidden)},
        }
    named["norm.weight"] = {"model.norm.weight": gain}
    named["head.weight"] = {embedding if tied else "lm_head.weight": table}
    return named


@dataclass(frozen=True, kw_only=True, slots=True)
class LlamaCheckpoint:
    """A folder whose names and shapes were checked; weights are read one at a time, when asked for."""

    folder: Path
    config: ModelConfig
    """Its transformer; how images come in is not said there, and left at the defaults."""
    vocab_size: int
    tied: bool
    """Whether the head is the table of embeddings."""
    files: Mapping[str, Path]
    """Where each tensor lies, by the checkpoint's names."""
    bos: int | None = None
    """Its id for the begin of a document, where it names one."""
    eos: int | None = None

    @classmethod
    def open(cls, folder: Path) -> "LlamaCheckpoint":
        """Reads the config, and the names and shapes of all tensors; no weights.

        Raises:
            ArtifactError: The folder is no such checkpoint, or computes something else; every fault is named.
        """
        values = read_json(folder / CONFIG)
        config = transformer_config(folder / CONFIG, values)
        checkpoint = cls(
            folder=folder,
            config=config,
            vocab_size=values["vocab_size"],
            tied=bool(values.get("tie_word_embeddings", False)),
            files=_files(folder),
            bos=_one_id(values.get("bos_token_id")),
            eos=_one_id(values.get("eos_token_id")),
        )
        checkpoint._check_tensors()
        return checkpoint

    def read(self, name: str) -> Tensor:
        """A parameter of a `TransfusionModel` by its full name, one of `shapes`; on CPU."""
        return torch.cat([self._read(theirs) for theirs in self._tensors()[name]])

    def shapes(self) -> dict[str, Shape]:
        """Of the parameters that it has values for, by our names."""
        return {
            ours: (sum(shape[0] for shape in theirs.values()), *next(iter(theirs.values()))[1:])
            for ours, theirs in self._tensors().items()
        }

    def _tensors(self) -> dict[str, dict[str, Shape]]:
        return llama_tensors(self.config, vocab_size=self.vocab_size, tied=self.tied)

    def _check_tensors(self) -> None:
        shapes = {name: shape for made in self._tensors().values() for name, shape in made.items()}
        faults = []
        for name, expected in shapes.items():
            if name not in self.files:
                faults.append(f"{self.folder}: holds no {name}; its config asks for it")
                continue
            found = self._shape(name)
            if found != expected:
                faults.append(
                    f"{self.files[name]}: {name} is {found}, by the config it must be {expected}"
                )
        # A head beside a tied one is a copy; frequencies of the rotation were once stored.
        spare = {
            name
            for name in self.files.keys() - shapes.keys()
            if name != "lm_head.weight" and not name.endswith("rotary_emb.inv_freq")
        }
        if spare:
            told = ", ".join(sorted(spare)[:3])
            faults.append(f"{self.folder}: {len(spare)} tensors have no place here, such as {told}")
        if faults:
            more = [f"... and {len(faults) - 10} more"] if len(faults) > 10 else []
            raise ArtifactError("\n".join([*faults[:10], *more]))

    def _shape(self, name: str) -> tuple[int, ...]:
        with _opened(self.files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def _read(self, name: str) -> Tensor:
        with _opened(self.files[name]) as file:
            return file.get_tensor(name)


def _one_id(value: Any) -> int | None:
    """A token id; the first where a config lists several."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else None


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or any(Path(str(f)).name != f for f in listed.values()):
            raise ArtifactError(
                f"{folder / INDEX}: weight_map must name a file of the folder for each tensor"
            )
        return {name: folder / file for name, file in listed.items()}
    place = folder / SINGLE
    if not place.is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        remedy = (
            f"; {pickled[0]} is a pickle, which is not read: save it as safetensors"
            if pickled
            else ""
        )
        raise ArtifactError(f"{folder}: holds neither {SINGLE} nor {INDEX}{remedy}")
    with _opened(place) as file:
        return dict.fromkeys(file.keys(), place)


@contextmanager
def _opened(place: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{place}: is missing, cut, or not what its index says: {error}"
        ) from error
