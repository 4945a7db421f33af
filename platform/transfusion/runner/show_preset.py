"""`transfusion show --preset`: parameters and FLOPs of named sizes, by formula; no torch, no store, no job.

Autoencoders are named beside the models; `show_autoencoder` has what is said of them.

The tests hold the formulas against the module and against PyTorch's counter of FLOPs.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from transfusion.autoencoder.presets import PRESETS as AUTOENCODERS
from transfusion.config import suggestion
from transfusion.errors import SpecError
from transfusion.model.config import AdapterName, ModelConfig
from transfusion.model.flops import (
    BACKWARD,
    CAPTION_TOKENS,
    LATENT_SHAPE,
    Work,
    forward_flops,
    usual_flops_per_position,
    usual_patches,
)
from transfusion.model.parts import list_parts
from transfusion.model.presets import LLAMA_VOCABULARY, NAMES, adapters, preset
from transfusion.runner.show_autoencoder import autoencoder_table, described_autoencoder
from transfusion.sequence.layout import ImageAttention

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SEQUENCE_LENGTH = 4096

WIDTH = 112
"""Columns of what is printed."""

_GROUPS = ("embedding", "blocks", "norms", "head", "down", "up", "skip", "keys")
"""Rows of the table of one preset: what parts begin with. `keys` are queries against keys, and hold no weights."""


def preset_status(
    name: str | None = None, *, patch_size: int | None = None, adapter: str | None = None
) -> dict[str, Any]:
    """`{"assumes": ..., "presets": [{"name", "parameters", "flops_per_token", "model", ...}]}` as plain values.

    Beside them `"autoencoders"`, as `described_autoencoder` has each.

    Args:
        name: Of one preset, which then comes with its parts; without it all, in both adapters unless one is named.

    Raises:
        SpecError: There is no such preset or adapter, or the patch is no power of two up to 8.
    """
    if name in AUTOENCODERS and (patch_size, adapter) != (None, None):
        raise SpecError(f"show: {name} is an autoencoder: --patch and --adapter are of models")
    if name is not None and name not in AUTOENCODERS and name.removesuffix("-unet") not in NAMES:
        known = (*NAMES, *AUTOENCODERS)
        raise SpecError(f"preset: there is no {name!r}{suggestion(name, known)}")
    chosen: tuple[AdapterName | None, ...] = (None,)
    if adapter is not None:
        chosen = tuple(known for known in get_args(AdapterName) if known == adapter)
        if not chosen:
            raise SpecError(
                f"--adapter: there is no {adapter!r}{suggestion(adapter, get_args(AdapterName))}"
            )
    elif name is None:
        chosen = get_args(AdapterName)
    shown = [
        _described(each, preset(each, patch_size=patch_size, adapter=one))
        for one in chosen
        for each in (NAMES if name is None else () if name in AUTOENCODERS else (name,))
        if name is not None or one is None or one in adapters(each)
    ]
    if name is not None and shown:
        shown[0]["parts"] = _parts(preset(name, patch_size=patch_size, adapter=chosen[0]))
    return {
        "assumes": {
            "vocab_size": LLAMA_VOCABULARY,
            "latent_shape": list(LATENT_SHAPE),
            "sequence_length": SEQUENCE_LENGTH,
            "caption_tokens": CAPTION_TOKENS,
        },
        "presets": shown,
        "autoencoders": [described_autoencoder(one) for one in AUTOENCODERS if name in (None, one)],
    }


def _described(name: str, config: ModelConfig) -> dict[str, Any]:
    adapter = transformer = 0
    for part in list_parts(config, vocab_size=LLAMA_VOCABULARY, latent_shape=LATENT_SHAPE):
        if part.name.startswith(("down.", "up.", "skip.")):
            adapter += part.parameters
        else:
            transformer += part.parameters
    return {
        "name": name,
        "adapter": config.adapter,
        "patch_size": config.patch_size,
        "image_tokens": usual_patches(config.patch_size),
        "shape": {
            "dim": config.dim,
            "depth": config.depth,
            "heads": config.num_heads,
            "kv_heads": config.kv_heads,
            "ffn_dim": config.hidden_dim,
        },
        "parameters": {
            "transformer": transformer,
            "adapter": adapter,
            "total": transformer + adapter,
        },
        "adapter_percent": 100 * adapter / transformer,
        "training_flops_per_token": {
            attention: usual_flops_per_position(
                config,
                vocab_size=LLAMA_VOCABULARY,
                sequence_length=SEQUENCE_LENGTH,
                image_attention=attention,
            )
            for attention in get_args(ImageAttention)
        },
        "model": config.identity(),
    }


def _parts(config: ModelConfig) -> list[dict[str, Any]]:
    """Parameters, and FLOPs of training a token, of each group of parts."""
    work = Work.usual(usual_patches(config.patch_size), sequence_length=SEQUENCE_LENGTH)
    told: Mapping[str, Any] = {"vocab_size": LLAMA_VOCABULARY, "latent_shape": LATENT_SHAPE}
    once = forward_flops(config, work, **told)
    # Parts of the same name are told together: those of both ways, per level.
    parameters: dict[str, int] = dict.fromkeys(once, 0)
    for part in list_parts(config, **told):
        parameters[part.name] += part.parameters
    return [
        {
            "name": name,
            "parameters": parameters[name],
            "training_flops_per_token": (1 + BACKWARD) * flops / work.positions,
        }
        for group in _GROUPS
        for name, flops in once.items()
        if name.split(".")[0] == group
    ]


def preset_text(status: Mapping[str, Any]) -> str:
    """The status for a terminal: the table, the parts where one preset was asked for, and what was assumed."""
    from rich.console import Console

    shown: Sequence[Mapping[str, Any]] = status["presets"]
    autoencoders: Sequence[Mapping[str, Any]] = status["autoencoders"]
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    if not shown:
        console.print(autoencoder_table(autoencoders))
        console.print(f"in a job:  network: {_yaml(autoencoders[0]['network'])}", soft_wrap=True)
        return _printed(console)
    console.print(_table(shown))
    for row in shown:
        if "parts" in row:
            console.print(_parts_table(row))
            console.print(f"in a job:  model: {_yaml(row['model'])}", soft_wrap=True)
            if "patch_size" in row["model"]:
                layout = _yaml({"patch_size": row["model"]["patch_size"]})
                console.print(f"           and in its mixture:  layout: {layout}", soft_wrap=True)
    assumes = status["assumes"]
    channels, height, width = assumes["latent_shape"]
    console.print(
        f"Vocabulary {assumes['vocab_size']:,}, embeddings untied; latents of {channels} x {height} x {width}. "
        f"GFLOP a token of training (three times the way there), in the mean over sequences of "
        f"{assumes['sequence_length']:,}: one half a document of text, the other images with captions of "
        f"{assumes['caption_tokens']} tokens. Attention is counted over the keys that are seen; "
        "`causal` has a patch see only those before it."
    )
    if autoencoders:
        console.print(autoencoder_table(autoencoders))
    return _printed(console)


def _printed(console: "Console") -> str:
    text = console.file
    assert isinstance(text, io.StringIO)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _table(shown: Sequence[Mapping[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("preset", "adapter"):
        table.add_column(column, no_wrap=True)
    for column in (
        "patch",
        "dim",
        "depth",
        "heads",
        "ffn",
        "parameters",
        "of adapter",
        "share",
        "GFLOP",
        "causal",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in shown:
        shape, parameters = row["shape"], row["parameters"]
        flops = row["training_flops_per_token"]
        heads = f"{shape['heads']}/{shape['kv_heads']}"
        table.add_row(
            row["name"],
            row["adapter"],
            f"{row['patch_size']}",
            f"{shape['dim']:,}",
            f"{shape['depth']}",
            heads if shape["kv_heads"] != shape["heads"] else f"{shape['heads']}",
            f"{shape['ffn_dim']:,}",
            _millions(parameters["total"]),
            _millions(parameters["adapter"]),
            f"{row['adapter_percent']:.2f}%",
            f"{flops['bidirectional'] / 1e9:,.3f}",
            f"{flops['causal'] / 1e9:,.3f}",
        )
    return table


def _parts_table(row: Mapping[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("part", no_wrap=True)
    for column in ("parameters", "", "GFLOP/token", ""):
        table.add_column(column, justify="right", no_wrap=True)
    total = row["parameters"]["total"]
    flops = row["training_flops_per_token"]["bidirectional"]
    for part in row["parts"]:
        table.add_row(
            part["name"],
            f"{part['parameters']:,}",
            f"{100 * part['parameters'] / total:.2f}%",
            f"{part['training_flops_per_token'] / 1e9:,.4f}",
            f"{100 * part['training_flops_per_token'] / flops:.2f}%",
        )
    table.add_row("in all", f"{total:,}", "", f"{flops / 1e9:,.4f}", "")
    return table


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count / 1e6:,.3f} M"


def _yaml(values: Mapping[str, Any]) -> str:
    """On one line, as it is pasted into a job."""
    import yaml

    return yaml.safe_dump(
        dict(values), default_flow_style=True, sort_keys=False, width=10_000
    ).strip()
