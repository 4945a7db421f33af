"""A tiny model with random weights, and its package: enough to check arithmetic, formats and endpoints."""

from pathlib import Path
from typing import Any

import torch

from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network, save_network
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.model.cache import PagedCache
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.package.write import write_package
from transfusion.sample.batch import StepBatch
from transfusion.sample.pages import PAGE_SIZE, PagedSequence, Pages, pages_for
from transfusion.sample.reading import Part, length_of, read
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.tokenizer.tokenizer import Tokenizer
from transfusion.tokenizer.training import train_tokenizer

NUM_PIECES = 40
LATENT = (4, 4, 4)
QUICK = {"solver": "dpm++", "num_inference_steps": 10}


def package_config(**changed: Any) -> PackageConfig:
    values = {
        "name": "tiny",
        "model": model_config(),
        "num_pieces": NUM_PIECES,
        "special_ids": {},
        "layout": SequenceLayout(patch_size=2),
        "sequence_length": 64,
        "latent_channels": LATENT[0],
        "latent_height": LATENT[1],
        "latent_width": LATENT[2],
        "image_size_px": 16,
        "schedule": "cosine",
        "num_timesteps": 1000,
        "sampling": SamplingDefaults(),
        "files": {},
    }
    return PackageConfig(**(values | changed))


def model_config(adapter: str = "unet", **options: Any) -> ModelConfig:
    return ModelConfig(
        dim=32,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        patch_size=2,
        adapter=adapter,
        unet=UNetConfig(channels=(8, 16), time_dim=16),
        **options,
    )


def tiny_model(
    seed: int = 0,
    adapter: str = "unet",
    vocab_size: int = SpecialIds.after(NUM_PIECES).vocab_size,
    variance: str = "fixed",
    **options: Any,
) -> TransfusionModel:
    model = TransfusionModel(
        model_config(adapter, **options),
        vocab_size=vocab_size,
        latent_channels=LATENT[0],
        variance=variance,
    )
    model.init_weights(seed)
    with torch.no_grad():
        # Make what is far matter, so that a wrong mask or position shows.
        for name, parameter in model.named_parameters():
            if "attention" in name and parameter.ndim == 2:
                parameter.mul_(1.6)
            if name in ("head.weight", "up.conv_out.weight", "up.project.weight"):
                parameter.mul_(4)
    return model.eval()


WORDS = ["a", "red", "green", "blue", "circle", "square", "triangle", "left", "of", "and", "two"]


def tiny_tokenizer() -> Tokenizer:
    lines = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3
    return train_tokenizer(lines, vocab_size=320, algorithm="bpe", character_coverage=1.0)


def tiny_autoencoder(folder: Path) -> Path:
    """f = 4, four channels, random weights."""
    torch.manual_seed(0)
    config = AutoencoderConfig(block_channels=(8, 8, 8), latent_channels=LATENT[0], norm_groups=4)
    network = build_network(config, sample_size_px=16)
    save_network(folder, config=network.config, weights=network.state_dict())
    ones = (1.0,) * LATENT[0]
    LatentStatistics(shift=(0.0,) * LATENT[0], scale=ones, num_images=1).write(folder)
    return folder


def tiny_package(folder: Path, *, seed: int = 0, **changed: Any) -> Path:
    """A whole package below `folder`: 16 px images, 4 patches, a context of 64."""
    tokenizer = tiny_tokenizer()
    config = package_config(num_pieces=tokenizer.num_pieces, **changed)
    raw, ema = (
        tiny_model(
            seed, vocab_size=config.special.vocab_size, variance=config.variance
        ).state_dict()
        for seed in (seed, seed + 1)
    )
    write_package(
        folder / "package",
        config=config,
        weights={"raw": raw, "ema": ema},
        tokenizer=tokenizer.model,
        autoencoder=tiny_autoencoder(folder / "autoencoder"),
    )
    return folder / "package"


def hidden_behind(
    model: TransfusionModel, config: PackageConfig, *steps: list[Part]
) -> torch.Tensor:
    """The state behind parts that are read into a cache, one list of them a step; pages are not side by side."""
    length = sum(length_of(parts, config) for parts in steps)
    pages = Pages(2 * pages_for(length))
    taken = [pages.take(1) for _ in range(pages.num_pages)]
    for page in taken[::2]:
        pages.give_back(page)
    sequence = PagedSequence(pages, length)
    cache = PagedCache.allocate(model.config, num_slots=pages.num_pages * PAGE_SIZE)
    hidden = torch.empty(0)
    for parts in steps:
        batch = StepBatch(pad=config.special.pad)
        row = read(batch, sequence, parts, config=config)
        hidden = batch.forward(model, cache).hidden[row]
    return hidden


def write_llama(folder: Path, config: ModelConfig, *, vocab_size: int) -> Path:
    """A random checkpoint by `transformers`, of the shape of our config; ids 1 and 2 begin and end a document."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    return folder
