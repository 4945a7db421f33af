"""Weights that training starts from: of a model package, or of a Llama-family checkpoint. Plain torch.

What fits is taken, and the rest stays as it was drawn; new rows of a vocabulary that was loaded are drawn like its
others. Patches whose weights are their own begin with a copy of text's, where the source has none for them. The
optimizer starts fresh.

No weight hangs on the resolution: places of patches are sines by formula, and the rotation goes by rank. For
another one set `model.position_grid` to the side in patches that the source learned on: rows and columns of
`sinusoidal_2d` are then spread over the places that it knows. Nothing sets it by itself; the log says to what.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from transfusion.autoencoder.config import WEIGHTS_NAME
from transfusion.errors import ArtifactError
from transfusion.model.config import ModelConfig
from transfusion.model.llama import LlamaCheckpoint
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import AUTOENCODER, TOKENIZER, WEIGHT_FILES
from transfusion.package.verify import verify_package
from transfusion.sequence.special import SpecialIds
from transfusion.train.init_from import IMAGES, TRANSFORMER, differing, is_package

log = logging.getLogger(__name__)

BY_ID = ("embedding.weight", "head.weight")
"""A row for each id of the vocabulary."""


class Start(NamedTuple):
    """What to start from, and how."""

    folder: Path
    strict: bool = True
    tokenizer: bytes | None = None
    """Of the mixture, to be compared with that of the folder."""
    grid_side: int | None = None
    """Patches along the longer side of the mixture's images."""
    autoencoder: str | None = None
    """sha256 of the weights that made the mixture's latents or codes."""


class Begun(NamedTuple):
    """What became of a model's parameters, by name."""

    loaded: list[str]
    """The source had them, all or some rows."""
    copied: list[str]
    """Patches' own, with text's values."""
    new: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What can be started from."""

    config: ModelConfig
    compared: tuple[str, ...]
    """Fields of the config that a model must share."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of its parameters, by our names."""
    read: Callable[[str], Tensor]
    ids: Mapping[int, int]
    """For ids of the model the source's id whose row they take."""
    position_grid: int | None = None
    """Patches along the longer side of the grid that places of patches were learned on, where there are any."""
    autoencoder: str | None = None
    """As a start's, of a package."""


def begin(model: TransfusionModel, start: Start, *, special: SpecialIds) -> Begun:
    """Gives a model that is not sharded the weights of a folder.

    Raises:
        ArtifactError: The two do not fit; every fault is named.
    """
    source = (_package if is_package(start.folder) else _llama)(start.folder, special)
    parameters = dict(model.named_parameters())
    misfits = _misfits(parameters, source, special)
    found = _faults(model, source, start, misfits)
    if found:
        raise ArtifactError("\n".join(f"init_from {start.folder}: {fault}" for fault in found))
    loaded = [name for name in source.shapes if name in parameters and name not in misfits]
    with torch.no_grad():
        for name in loaded:
            take = partial(_take_rows, ids=source.ids) if name in BY_ID else Tensor.copy_
            take(parameters[name], source.read(name))
        twins = {name: re.sub(r"\bimage[._]", "", name, count=1) for name in parameters}
        copied = [
            n for n, twin in twins.items() if twin != n and n not in loaded and twin in loaded
        ]
        for name in copied:
            parameters[name].copy_(parameters[twins[name]])
    rest = parameters.keys() - {*loaded, *copied}
    begun = Begun(loaded, copied, [name for name in parameters if name in rest])
    _tell(start, begun, parameters, misfits, new_ids=special.vocab_size - len(source.ids))
    _tell_positions(model.config, source, start)
    if (
        None not in (source.autoencoder, start.autoencoder)
        and source.autoencoder != start.autoencoder
    ):
        log.warning(
            f"init_from {start.folder}: it learned images by another autoencoder than the mixture's; what it "
            "knows of their latents is of little use: to keep it, take its autoencoder (stage "
            "transfusion.autoencoder, path: the folder `autoencoder` in it)"
        )
    return begun


def begin_everywhere(
    model: TransfusionModel | None, start: Start, *, special: SpecialIds
) -> list[str]:
    """Names of what was loaded into rank 0's model, on every rank. A fault of rank 0 is everyone's.

    Args:
        model: On rank 0 only.

    Raises:
        ArtifactError: As `begin`.
    """
    told: list[Any] = [[], ""]
    if model is not None:
        try:
            told[0] = begin(model, start, special=special).loaded
        except ArtifactError as error:
            told[1] = str(error)
    dist.broadcast_object_list(told, src=0)
    if told[1]:
        raise ArtifactError(told[1])
    return list(told[0])


def freeze_text(model: TransfusionModel) -> None:
    """All that text goes through stays as it is; to be called before the model is sharded."""
    for name, parameter in model.named_parameters():
        if re.match(r"embedding\.|norm\.|head\.|blocks\.\d+\.(?!image\.)", name):
            parameter.requires_grad_(False)


def _package(folder: Path, special: SpecialIds) -> Source:
    from safetensors import safe_open

    config = verify_package(folder)
    file = safe_open(folder / WEIGHT_FILES["ema"], framework="pt")
    theirs = config.special
    pieces = min(config.num_pieces, special.pad)
    named = {getattr(special, n): getattr(theirs, n) for n in ("pad", "bos", "eos", "boi", "eoi")}
    for code in range(min(special.num_codes, theirs.num_codes)):
        named[special.first_code + code] = theirs.first_code + code
    longer = max(config.latent_height, config.latent_width) // config.model.patch_size
    return Source(
        config=config.model,
        compared=TRANSFORMER + IMAGES,
        shapes={name: tuple(file.get_slice(name).get_shape()) for name in file.keys()},  # noqa: SIM118
        read=file.get_tensor,
        ids={**{piece: piece for piece in range(pieces)}, **named},
        position_grid=config.model.position_grid or longer,
        autoencoder=config.files.get(f"{AUTOENCODER}/{WEIGHTS_NAME}"),
    )


def _llama(folder: Path, special: SpecialIds) -> Source:
    checkpoint = LlamaCheckpoint.open(folder)
    ids = {i: i for i in range(min(checkpoint.vocab_size, special.vocab_size))}
    # Its own begin and end of a document, where ours come after its vocabulary.
    for ours, theirs in ((special.bos, checkpoint.bos), (special.eos, checkpoint.eos)):
        if theirs is not None:
            ids.setdefault(ours, theirs)
    return Source(
        config=checkpoint.config,
        compared=TRANSFORMER,
        shapes=checkpoint.shapes(),
        read=checkpoint.read,
        ids=ids,
    )


def _misfits(
    parameters: Mapping[str, Tensor], source: Source, special: SpecialIds
) -> dict[str, str]:
    """What of the source has no place in the model, and why."""
    wrong = {}
    # The vocabulary first: of many misfits not all are told.
    for name, theirs in sorted(source.shapes.items(), key=lambda shape: shape[0] not in BY_ID):
        if name not in parameters:
            wrong[name] = f"{name} {theirs} has no place in this model"
            continue
        ours = tuple(parameters[name].shape)
        if name in BY_ID and ours[1:] == theirs[1:]:
            if theirs[0] > special.vocab_size:
                wrong[name] = (
                    f"{name} has {theirs[0]} rows for a vocabulary of {special.vocab_size}; use its own tokenizer"
                )
        elif ours != theirs:
            wrong[name] = f"{name} is {theirs}, the model's {ours}"
    return wrong


def _faults(
    model: TransfusionModel, source: Source, start: Start, misfits: Mapping[str, str]
) -> list[str]:
    found = differing(source.config, model.config, source.compared if start.strict else TRANSFORMER)
    place = start.folder / TOKENIZER
    if (
        start.strict
        and start.tokenizer
        and place.is_file()
        and place.read_bytes() != start.tokenizer
    ):
        found.append(
            f"its {TOKENIZER} is not the one that the mixture's text was encoded with; ids would mean other pieces"
        )
    if start.strict and misfits:
        told = list(misfits.values())
        more = [f"... and {len(told) - 10} more"] if len(told) > 10 else []
        found += [*told[:10], *more, "with init_strict: false what does not fit is left out"]
    return found


def _take_rows(parameter: Tensor, stored: Tensor, *, ids: Mapping[int, int]) -> None:
    """Copies the rows of the ids that both have; the others' draw is moved to the mean and spread of the stored.

    As they are drawn, at a scale of 1, they would be fifty times as long as a Llama's.
    """
    both = {ours: theirs for ours, theirs in ids.items() if theirs < len(stored)}
    new = [row for row in range(len(parameter)) if row not in both]
    if new:
        spread, mean = torch.std_mean(stored.float(), dim=0)
        parameter[new] = mean + spread * parameter[new] / parameter.std()
    parameter[list(both)] = stored[list(both.values())].to(parameter.dtype)


def _tell(
    start: Start,
    begun: Begun,
    parameters: Mapping[str, Tensor],
    misfits: Mapping[str, str],
    *,
    new_ids: int,
) -> None:
    """What the log of the run says of its start."""

    def millions(names: Sequence[str]) -> str:
        return f"{sum(parameters[name].numel() for name in names) / 1e6:,.2f} M"

    told = [f"starts from {start.folder}: {millions(begun.loaded)} parameters loaded"]
    if begun.copied:
        told.append(f"{millions(begun.copied)} of patches copied from text's")
    if begun.new:
        told.append(f"{millions(begun.new)} drawn: {_some(begun.new)}")
    if new_ids:
        told.append(f"{new_ids} rows of the vocabulary drawn")
    if misfits:
        told.append(f"left out: {_some(list(misfits))}")
    log.info("; ".join(told))


def _tell_positions(model: ModelConfig, source: Source, start: Start) -> None:
    """Warns where rows and columns would mean other places than those that were learned."""
    theirs = source.position_grid if source.config.patch_positions == "sinusoidal_2d" else None
    ours = model.position_grid or start.grid_side
    if model.patch_positions == "sinusoidal_2d" and None not in (theirs, ours) and theirs != ours:
        log.warning(
            f"init_from {start.folder}: places of patches were learned on a grid of {theirs} patches a side, and "
            f"here they count {ours}: set config.model.position_grid of this stage to {theirs}, and they are "
            "spread over the places that it knows; as it is, they mean others"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more
