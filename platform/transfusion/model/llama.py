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
from transfusion.model.transformer import TransfusionModel

_SHAPE_FIELDS = (
    "dim",
    "depth",
    "num_heads",
    "kv_heads",
    "hidden_dim",
    "rope_theta",
    "norm_eps",
    "qk_norm",
    "norm",
)
"""What a model must share with a checkpoint to take its weights."""


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

    def over(self, name: str, weight: Tensor) -> Tensor:
        """A parameter of a `TransfusionModel` with the checkpoint's values in it.

        Args:
            name: The parameter's full name.
            weight: Its value so far, unsharded. Rows beyond the checkpoint's vocabulary keep it, and so does
                all that the checkpoint has not: such a weight is returned as it is.

        Returns:
            On CPU, in the dtype of `weight`.

        Raises:
            ArtifactError: The weight has another shape than the checkpoint's.
        """
        sources = self._sources().get(name)
        if sources is None:
            return weight
        stored = torch.cat([self._read(source) for source in sources]).to(weight.dtype)
        rows = len(stored)
        grown = name in ("embedding.weight", "head.weight") and len(weight) > rows
        if weight.shape[1:] != stored.shape[1:] or (len(weight) != rows and not grown):
            raise ArtifactError(
                f"{self.folder}: {' + '.join(sources)} is {tuple(stored.shape)}, the model's {name} "
                f"{tuple(weight.shape)}; give the model the checkpoint's sizes"
            )
        return torch.cat([stored, weight[rows:].cpu()]) if grown else stored

    def names(self) -> list[str]:
        """Parameters that it has values for, by our names: the pretrained part of a model."""
        return list(self._sources())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters that it has values for, by our names."""
        theirs = dict(self._shapes())
        return {
            name: (sum(theirs[source][0] for source in sources), *theirs[sources[0]][1:])
            for name, sources in self._sources().items()
        }

    def _sources(self) -> dict[str, tuple[str, ...]]:
        """For each of our names the tensors that it is made of, one below the other."""
        named: dict[str, tuple[str, ...]] = {"embedding.weight": ("model.embed_tokens.weight",)}
        for index in range(self.config.depth):
            theirs, ours = f"model.layers.{index}", f"blocks.{index}"
            attention, ffn = f"{theirs}.self_attn", f"{theirs}.mlp"
            named |= {
                f"{ours}.attention_norm.weight": (f"{theirs}.input_layernorm.weight",),
                f"{ours}.attention.qkv.weight": tuple(
                    f"{attention}.{x}_proj.weight" for x in "qkv"
                ),
                f"{ours}.attention.out.weight": (f"{attention}.o_proj.weight",),
                f"{ours}.ffn_norm.weight": (f"{theirs}.post_attention_layernorm.weight",),
                f"{ours}.ffn.gate_up.weight": (f"{ffn}.gate_proj.weight", f"{ffn}.up_proj.weight"),
                f"{ours}.ffn.out.weight": (f"{ffn}.down_proj.weight",),
            }
        named["norm.weight"] = ("model.norm.weight",)
        named["head.weight"] = ("model.embed_tokens.weight" if self.tied else "lm_head.weight",)
        return named

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The tensors that must be there."""
        c = self.config
        inner = {
            "q_proj": (c.num_heads * c.head_dim, c.dim),
            "k_proj": (c.kv_heads * c.head_dim, c.dim),
            "v_proj": (c.kv_heads * c.head_dim, c.dim),
            "o_proj": (c.dim, c.num_heads * c.head_dim),
            "gate_proj": (c.hidden_dim, c.dim),
            "up_proj": (c.hidden_dim, c.dim),
            "down_proj": (c.dim, c.hidden_dim),
            "embed_tokens": (self.vocab_size, c.dim),
            "lm_head": (self.vocab_size, c.dim),
        }
        for sources in self._sources().values():
            for source in sources:
                yield source, inner.get(source.split(".")[-2], (c.dim,))

    def _check_tensors(self) -> None:
        shapes = dict(self._shapes())
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


@torch.no_grad()
def load_llama(model: TransfusionModel, folder: Path) -> list[str]:
    """Gives a model that is not sharded the weights of a checkpoint; adapters and further ids keep theirs.

    Of one that is sharded, `LlamaCheckpoint.over` gives each weight in full.

    Returns:
        The names of the parameters that were taken, wholly or in their first rows.

    Raises:
        ArtifactError: The folder is no such checkpoint, or the model has other sizes; every fault is named.
    """
    checkpoint = LlamaCheckpoint.open(folder)
    faults = [
        f"{folder}: its {field} is {theirs}, the model's {ours}; they must be the same"
        for field in _SHAPE_FIELDS
        if (theirs := getattr(checkpoint.config, field)) != (ours := getattr(model.config, field))
    ]
    if checkpoint.vocab_size > model.vocab_size:
        faults.append(
            f"{folder}: its vocab_size is {checkpoint.vocab_size}, the model's {model.vocab_size}; use the "
            "checkpoint's own tokenizer"
        )
    if faults:
        raise ArtifactError("\n".join(faults))
    parameters = dict(model.named_parameters())
    for name in checkpoint.names():
        parameters[name].copy_(checkpoint.over(name, parameters[name]))
    return checkpoint.names()


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
