"""Attention by key ranges on one GPU, beside a dense mask."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.benchmarks.batches import density, make_batch
from tests.benchmarks.gpu_device import Device
from tests.benchmarks.gpu_setting import Setting
from tests.benchmarks.measure import Result
from transfusion.model.attention import plan_attention
from transfusion.model.blockwise import sees


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
