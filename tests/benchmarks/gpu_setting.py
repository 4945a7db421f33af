"""What is measured on a GPU: a preset, and packed text and images to give it."""

from dataclasses import dataclass

import torch

from tests.benchmarks.batches import Packing
from transfusion.model.config import ModelConfig
from transfusion.model.presets import PRESETS
from transfusion.model.transformer import TransfusionModel
from transfusion.sequence.special import SpecialIds


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained and sampled."""

    preset: str
    sequences: int
    length: int
    rounds: int

    @property
    def model(self) -> ModelConfig:
        """Its architecture."""
        return PRESETS[self.preset]

    @property
    def packing(self) -> Packing:
        """Half of the positions are images of 256 patches, as of 256 pixels; a vocabulary of 32,000."""
        latent = (8, 32, 32) if self.length >= 512 else (8, 8, 8)
        pieces = 32_000 if self.length >= 512 else 1024
        loose = Packing(
            sequences=self.sequences, length=self.length, latent=latent, num_pieces=pieces
        )
        images = max(1, self.length // 2 // loose.num_patches)
        return Packing(
            sequences=self.sequences,
            length=self.length,
            latent=latent,
            num_pieces=pieces,
            images=images,
            caption_tokens=min(32, loose.num_patches // 2),
            prose_tokens=1024,
        )


def make_model(setting: Setting, device: torch.device | str) -> TransfusionModel:
    """The preset at the vocabulary of the packing."""
    packing = setting.packing
    with torch.device(device):
        return TransfusionModel(
            setting.model,
            vocab_size=SpecialIds.after(packing.num_pieces).vocab_size,
            latent_channels=packing.latent[0],
        )


def num_compiles() -> int:
    """Graphs that dynamo has made so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
