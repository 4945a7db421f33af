"""Encoding on one GPU, beside what the device could do with the same arithmetic."""

import importlib.util

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.gpu_device import Device
from tests.benchmarks.gpu_setting import Setting
from tests.benchmarks.measure import Result
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network
from transfusion.autoencoder.statistics import LatentStatistics


def encoding(device: Device, setting: Setting, *, image_size_px: int) -> list[Result]:
    """An autoencoder of Stable Diffusion's shape in bf16, from bytes to a posterior on the device."""
    if importlib.util.find_spec("diffusers") is None:
        print("nothing is encoded, for the autoencoder is diffusers'; run: pip install diffusers")
        return []
    channels = (128, 256, 512, 512) if device.is_cuda else (16, 32, 32)
    shape = AutoencoderConfig(
        block_channels=channels,
        layers_per_block=2,
        attention="middle",
        latent_channels=8,
        norm_groups=32 if device.is_cuda else 8,
    )
    network = build_network(shape, sample_size_px=image_size_px)
    statistics = LatentStatistics(shift=(0.0,) * 8, scale=(1.0,) * 8, num_images=1)
    autoencoder = Autoencoder(network, statistics, digest="").to(device.torch)
    micro_batch = 32 if device.is_cuda else 2
    images = torch.randint(
        0, 256, (micro_batch, image_size_px, image_size_px, 3), dtype=torch.uint8
    )
    kind = device.torch.type
    with FlopCounterMode(display=False) as counter:
        autoencoder.encode(images[:1])
    flops = counter.get_total_flops()
    compiled = torch.compile(autoencoder.encode, dynamic=False) if device.is_cuda else None

    def encode() -> None:
        with torch.autocast(kind, torch.bfloat16):
            autoencoder.encode(images).mean.cpu()

    def encode_compiled() -> None:
        assert compiled is not None
        with torch.autocast(kind, torch.bfloat16):
            compiled(images).mean.cpu()

    runs = {"as the stage does": encode} | ({"compiled": encode_compiled} if compiled else {})
    turns = device.turns(runs, rounds=setting.rounds)
    limit = device.gemm_tflops * 1e12 / flops
    return [
        Result(
            name=f"encoding {image_size_px} px, {flops / 1e9:,.0f} GFLOP an image, {name}",
            value=micro_batch / turns.median(name),
            unit="images/s",
            reference=limit,
            ratio=micro_batch / turns.median(name) / limit,
            against="its convolutions at the speed of one large product",
        )
        for name in runs
    ]
