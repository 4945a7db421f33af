"""Whether the device computes what the CPU does: attention against fp64, losses against fp32 on the CPU."""

import torch
from torch import Tensor, nn

from tests.benchmarks.batches import Packing, make_batch
from tests.benchmarks.gpu_device import Device
from tests.benchmarks.measure import Result
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.attention import plan_attention
from transfusion.model.blockwise import sees
from transfusion.model.config import ModelConfig, UNetConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums
from transfusion.sequence.special import SpecialIds
from transfusion.train.adam import AdamWBf16Moments, has_fused_kernel
from transfusion.train.parallel import set_precision

SMALL = Packing(sequences=2, length=512, images=4, latent=(8, 16, 16))
STEPS = 5

CONFIGS = {
    "linear": ModelConfig(dim=256, depth=4, num_heads=4),
    "unet": ModelConfig(
        dim=256,
        depth=4,
        num_heads=4,
        num_kv_heads=2,
        adapter="unet",
        unet=UNetConfig(channels=(32, 64)),
    ),
}


def attention(device: Device) -> list[Result]:
    """Outputs and gradients: the norm of the error over the norm of what is right."""
    batch = make_batch(SMALL)
    results = []
    for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 2e-2)):
        for kv_heads in (4, 2):
            torch.manual_seed(0)
            shapes = [(2, heads, SMALL.length, 64) for heads in (4, kv_heads, kv_heads)]
            given = [torch.randn(shape, dtype=dtype) for shape in shapes]
            weight = torch.randn(shapes[0], dtype=dtype)
            right = _exact([x.double() for x in given], weight.double(), batch.lo, batch.hi)
            lo, hi = batch.lo.to(device.torch), batch.hi.to(device.torch)
            there = [x.to(device.torch).requires_grad_() for x in given]
            out = plan_attention(lo, hi, query_block=32)(*there)
            found = [out, *torch.autograd.grad(out, there, weight.to(device.torch))]
            error = max(
                ((a.detach().cpu().double() - b).norm() / b.norm()).item()
                for a, b in zip(found, right, strict=True)
            )
            results.append(
                _within(
                    f"attention and gradients, {_name(dtype)}, {kv_heads} kv heads", error, most
                )
            )
    return results


def losses(device: Device) -> list[Result]:
    """A few steps of AdamW from the same weights on the same batches."""
    results = []
    for name, config in CONFIGS.items():
        right = _train(config, torch.device("cpu"), torch.float32)
        for dtype, most in ((torch.float32, 2e-3), (torch.bfloat16, 2e-2)):
            found = _train(config, device.torch, dtype)
            error = max(abs(a - b) / abs(b) for a, b in zip(found, right, strict=True))
            results.append(
                _within(f"losses of {STEPS} steps, {name} adapter, {_name(dtype)}", error, most)
            )
    return results


def moments(device: Device) -> list[Result]:
    """Updates by AdamW with moments in bf16: on CUDA one kernel does them, on the CPU we do."""
    right, found = (_updated(place) for place in (torch.device("cpu"), device.torch))
    error = ((found - right).norm() / right.norm()).item()
    how = "one kernel" if has_fused_kernel(device.torch) else "without a kernel of its own"
    return [_within(f"{STEPS} updates with bf16 moments, {how}", error, 1e-3)]


def _updated(device: torch.device) -> Tensor:
    """How far weights come by gradients that are the same everywhere."""
    draws = torch.Generator().manual_seed(0)
    begun = torch.randn(1000, generator=draws)
    weight = nn.Parameter(begun.clone().to(device))
    optimizer = AdamWBf16Moments([{"params": [weight]}], lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(STEPS):
        weight.grad = torch.randn(1000, generator=draws).to(device)
        optimizer.step()
    return weight.detach().cpu() - begun


def _train(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> list[float]:
    precise = dtype == torch.float32
    set_precision("fp32" if precise else "bf16", device=device, cpu_threads=torch.get_num_threads())
    vocab_size = SpecialIds.after(SMALL.num_pieces).vocab_size
    model = TransfusionModel(config, vocab_size=vocab_size, latent_channels=SMALL.latent[0])
    model.init_weights(0)
    masters = [parameter.detach().clone().to(device) for parameter in model.parameters()]
    model.to(device, dtype)
    schedule = noise_path("cosine").to(device)
    optimizer = torch.optim.AdamW(masters, lr=1e-3)
    losses = []
    for step in range(STEPS):
        batch = make_batch(SMALL, seed=step).to(device)
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, schedule)
        sums = loss_sums(model(batch, noisy), batch)
        loss = combine(sums, global_lm_count=sums.lm_count, global_image_count=sums.image_count)
        loss.backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.to(master.dtype) if parameter.grad is not None else None
        nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        losses.append(loss.item())
    return losses


def _exact(given: list[Tensor], weight: Tensor, lo: Tensor, hi: Tensor) -> list[Tensor]:
    q, k, v = (x.requires_grad_() for x in given)
    share = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(share, dim=1) for x in (k, v))
    scores = q @ keys.mT / q.shape[-1] ** 0.5
    visible = sees(lo, hi, first=0, last=lo.shape[1])
    out = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1) @ values
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), weight)]


def _within(name: str, error: float, most: float) -> Result:
    return Result(
        name=name,
        value=error,
        unit="relative error",
        reference=most,
        ratio=most / max(error, 1e-12) if error == error else 0.0,
        bar=1.0,
        against="the most that is allowed",
    )


def _name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
