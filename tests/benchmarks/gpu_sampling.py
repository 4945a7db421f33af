"""Sampling and encoding on one GPU, beside what the device could do with the same arithmetic."""

import importlib.util
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.gpu_device import Device
from tests.benchmarks.gpu_training import Setting, make_model
from tests.benchmarks.measure import Result
from transfusion.autoencoder.autoencoder import Autoencoder
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network
from transfusion.autoencoder.statistics import LatentStatistics
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.layout import SequenceLayout

STEPS, NEW_TOKENS, PREFIX = 25, 64, 64


def sampling(device: Device, setting: Setting) -> list[Result]:
    """Images with guidance, and text, alone and eight at a time."""
    model, config = _sampled(device, setting)
    weights = sum(w.numel() for w in model.blocks.parameters())
    image: dict[str, Any] = {
        "modalities": ("image",),
        "solver": "dpm++",
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
    }
    text: dict[str, Any] = {"modalities": ("text",), "max_tokens": NEW_TOKENS, "temperature": 0.0}
    kinds = {"text": text}
    if importlib.util.find_spec("diffusers"):
        kinds["image"] = image
    else:
        print("no images are sampled, for the solvers are diffusers'; run: pip install diffusers")
    results = []
    for kind, params in kinds.items():
        for count in (1, 8):
            requests = [
                Request((TextPart(tuple(range(1, PREFIX))),), SamplingParams(**params, seed=seed))
                for seed in range(count)
            ]

            def run(requests: list[Request] = requests) -> None:
                generate(model, config, requests)

            seconds = device.turns({"run": run}, rounds=setting.rounds).median("run")
            if kind == "image":
                # Both branches of every step; every weight is used twice a position, and read once a step.
                positions = count * (PREFIX + 2 + 2 * STEPS * config.num_patches)
                least = max(
                    2 * weights * positions / device.gemm_tflops / 1e12,
                    STEPS * 2 * weights / device.copy_gb_s / 1e9,
                )
                name, unit, scale = f"an image of {STEPS} steps", "s/image", 1 / count
            else:
                least = NEW_TOKENS * 2 * weights / device.copy_gb_s / 1e9
                name, unit, scale = "text", "ms/token", 1e3 / count / NEW_TOKENS
            results.append(
                Result(
                    name=f"sampling {name}, {count} at a time",
                    value=seconds * scale,
                    unit=unit,
                    reference=least * scale,
                    ratio=least / seconds,
                    against="the blocks' arithmetic, or reading their weights",
                )
            )
    return results


def _sampled(device: Device, setting: Setting) -> tuple[Any, PackageConfig]:
    packing = setting.packing
    config = PackageConfig(
        name="benchmark",
        model=setting.model,
        num_pieces=packing.num_pieces,
        special_ids={},
        layout=SequenceLayout(patch_size=2),
        sequence_length=1024,
        latent_channels=packing.latent[0],
        latent_height=packing.latent[1],
        latent_width=packing.latent[2],
        image_size_px=8 * packing.latent[1],
        schedule="cosine",
        num_timesteps=1000,
        sampling=SamplingDefaults(),
        files={},
    )
    model = make_model(setting, "meta").to_empty(device="cpu")
    model.init_weights(0)
    with torch.no_grad():
        # EOS is never the likeliest: text goes on to the length that is asked for.
        model.head.weight[config.special.eos] = 0
    return model.to(device.torch, torch.bfloat16).eval().requires_grad_(False), config


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
