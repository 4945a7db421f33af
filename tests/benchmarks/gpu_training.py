"""Training on one GPU: what a step reaches of the device, attention beside a dense mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.batches import Packing, density, make_batch
from tests.benchmarks.gpu_device import Device
from tests.benchmarks.measure import Result
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.attention import plan_attention
from transfusion.model.blockwise import sees
from transfusion.model.config import ModelConfig
from transfusion.model.presets import PRESETS
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.special import SpecialIds
from transfusion.train.parallel import (
    AveragedWeights,
    data_mesh,
    parameter_groups,
    set_precision,
    shard,
)


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


def training(device: Device, setting: Setting, *, compiled: bool) -> list[Result]:
    """Steps in bf16 with fp32 masters, sharded over one rank, AdamW and average included."""
    batches = [make_batch(setting.packing, seed=seed).to(device.torch) for seed in range(3)]
    step = _make_step(device, setting, batches, compiled=compiled)
    for _ in range(4):
        step()
    device_peak = device.peak_gib()
    compiles = num_compiles()
    seconds = device.turns({"step": step}, rounds=2 * setting.rounds).median("step")
    compiles = num_compiles() - compiles
    batch = batches[0]
    flops = count_flops(setting, batch)
    rate = flops / seconds / 1e12
    name = f"training, {setting.preset}, {'blocks compiled' if compiled else 'eager'}"
    return [
        Result(
            name=f"{name}, {density(batch):.0%} of pairs seen",
            value=rate,
            unit="TFLOP/s",
            reference=device.sheet_tflops,
            ratio=rate / device.sheet_tflops,
            bar=0.4 if compiled and device.is_cuda else None,
            against="the maker's sheet (MFU)",
        ),
        Result(
            name=name,
            value=rate,
            unit="TFLOP/s",
            reference=device.gemm_tflops,
            ratio=rate / device.gemm_tflops,
            against="one large product here",
        ),
        Result(name=name, value=batch.token_ids.numel() / seconds, unit="positions/s"),
        Result(name=name, value=float(batch.image_weight.sum()) / seconds, unit="images/s"),
        Result(name=name, value=1e3 * seconds, unit="ms/step"),
        Result(name=name, value=device_peak, unit="GiB at most"),
        Result(
            name=f"{name}, compiled again after 4 steps",
            value=compiles,
            unit="times",
            reference=0.0,
            ratio=1.0 / (1.0 + compiles),
            bar=1.0,
            against="static shapes",
        ),
    ]


def _make_step(
    device: Device, setting: Setting, batches: list[PackedBatch], *, compiled: bool
) -> Callable[[], None]:
    set_precision("bf16", device=device.torch, cpu_threads=torch.get_num_threads())
    model = make_model(setting, "meta").to_empty(device="cpu")
    model.init_weights(0)
    model.to(device.torch)
    if compiled:
        for block in model.blocks:
            block.compile(dynamic=False)
    shard(model, blocks=model.blocks, mesh=data_mesh(device.torch), precision="bf16")
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-4)
    averaged = AveragedWeights(model)
    schedule = noise_path("cosine").to(device.torch)
    taken = [0]

    def step() -> None:
        batch = batches[taken[0] % len(batches)]
        taken[0] += 1
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, schedule)
        sums = loss_sums(model(batch, noisy), batch)
        combine(sums, global_lm_count=sums.lm_count, global_image_count=sums.image_count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.update(decay=0.999)

    return step


def num_compiles() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def count_flops(setting: Setting, batch: PackedBatch) -> int:
    """Of forward and backward, at the pairs that are seen and at the rows that have a target: no more."""
    config = setting.model
    model = make_model(setting, "meta")
    block = sum(weight.numel() for weight in model.blocks.parameters() if weight.ndim == 2)
    pairs = int((batch.hi - batch.lo).sum())
    head = model.head.weight.numel() * len(batch.text_rows)
    forward = 2 * (block * batch.token_ids.numel() + head) + 4 * config.depth * config.dim * pairs
    slots, patches = batch.image_positions.shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        times = torch.zeros(slots, dtype=torch.long, device="meta")
        noisy = torch.zeros(batch.latents.shape, device="meta")
        encoded = model.encode_images(noisy, times)
        hidden = torch.zeros(slots, patches, config.dim, device="meta")
        model.decode_images(hidden, times, encoded)
    return 3 * (forward + counter.get_total_flops())


def attention(device: Device, setting: Setting) -> list[Result]:
    """Forward and backward of one layer in bf16, the plan made beforehand."""
    config, packing = setting.model, setting.packing
    batch = make_batch(packing).to(device.torch)
    heads = (config.num_heads, config.kv_heads, config.kv_heads)
    inputs = [
        torch.randn(
            (packing.sequences, count, packing.length, config.head_dim),
            device=device.torch,
            dtype=torch.bfloat16,
            requires_grad=True,
        )
        for count in heads
    ]
    weight = torch.randn_like(inputs[0]).detach()
    attend = plan_attention(batch.lo, batch.hi, query_block=config.query_block)
    mask = sees(batch.lo, batch.hi, first=0, last=packing.length)

    def ranges() -> None:
        torch.autograd.grad(attend(*inputs), inputs, weight)

    def dense() -> None:
        q, k, v = inputs
        gqa = q.shape[1] != k.shape[1]
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
        torch.autograd.grad(out, inputs, weight)

    def planning() -> None:
        plan_attention(batch.lo, batch.hi, query_block=config.query_block)

    runs = {"ranges": ranges, "dense": dense, "planning": planning}
    turns = device.turns(runs, rounds=2 * setting.rounds)
    flops = 14 * config.dim * int((batch.hi - batch.lo).sum())
    return [
        Result(
            name=f"attention, forward and backward, {density(batch):.0%} of pairs seen",
            value=1e3 * turns.median("ranges"),
            unit="ms/layer",
            reference=1e3 * turns.median("dense"),
            ratio=turns.ratio("ranges", "dense"),
            bar=2.0 if device.is_cuda else None,
            against="one SDPA with a dense mask",
        ),
        Result(
            name="attention, forward and backward, at the pairs seen",
            value=flops / turns.median("ranges") / 1e12,
            unit="TFLOP/s",
            reference=device.gemm_tflops,
            ratio=flops / turns.median("ranges") / 1e12 / device.gemm_tflops,
            against="one large product here",
        ),
        Result(
            name="planning the ranges, once a batch",
            value=1e3 * turns.median("planning"),
            unit="ms",
        ),
    ]
