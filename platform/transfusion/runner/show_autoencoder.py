"""Named autoencoders in `transfusion show --preset`: sizes by formula, and the network to put into a job."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transfusion.autoencoder.parameters import num_parameters
from transfusion.autoencoder.presets import PRESETS

if TYPE_CHECKING:
    from rich.table import Table


def described_autoencoder(name: str) -> dict[str, Any]:
    """`{"name", "downsampling", "latent_channels", "codes", "parameters", "network"}` as plain values.

    Args:
        name: One of `PRESETS`.
    """
    config = PRESETS[name]
    return {
        "name": name,
        "downsampling": config.downsampling,
        "latent_channels": config.latent_channels,
        "codes": config.codebook_size,
        "parameters": num_parameters(config),
        "network": config.identity(),
    }


def autoencoder_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """For a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("autoencoder", no_wrap=True)
    for column in ("px a latent", "channels", "codes", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['downsampling']} x {row['downsampling']}",
            f"{row['latent_channels']}",
            f"{row['codes']:,}" if row["codes"] else "-",
            f"{row['parameters'] / 1e6:,.1f} M",
        )
    return table
