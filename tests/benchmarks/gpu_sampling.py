"""The sampling engine on one GPU: settled steps, beside the same forward passes bare, eager and compiled.

Of images with guidance and of text, 1 to 32 at a time, in bf16: images and tokens a second; what a step is beside
the forward pass that is in it; beside the blocks' arithmetic, or the reading of their weights; how much of a step
the GPU waits for its next kernel; and half text, half images in one engine. Not yet measured on CUDA; on a CPU the
paths run, and nothing is said of kernels.
"""

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks import mixing
from tests.benchmarks.gpu_device import Device
from tests.benchmarks.gpu_setting import Setting, make_model
from tests.benchmarks.measure import Result
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.sample.compiled import compile_rows
from transfusion.sample.engine import Engine
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.layout import SequenceLayout

STEPS, PREFIX, SETTLED, PROFILED = 25, 64, 3, 5
"""Of an image, and tokens of a text; positions of the prompt; steps that are not counted; that are profiled."""

GAPS = 0.1
"""The most of a step that the GPU may wait for its next kernel."""

IMAGE: dict[str, Any] = {
    "modalities": ("image",), "solver": "dpm++", "num_inference_steps": STEPS, "guidance_scale": 3.0,
}  # fmt: skip
TEXT: dict[str, Any] = {"modalities": ("text",), "max_tokens": STEPS, "temperature": 0.0}


def sampling(device: Device, setting: Setting, *, counts: Sequence[int]) -> list[Result]:
    """Every kind at every count, eager and then compiled."""
    model, config = _sampled(device, setting)
    kinds = {"text": TEXT}
    if importlib.util.find_spec("diffusers"):
        kinds["image"] = IMAGE
    else:
        print("no images are sampled, for the solvers are diffusers'; run: pip install diffusers")
    if not device.is_cuda:
        print("not measured without CUDA: gaps between kernels, CUDA graphs")
    results = _mixing(model, config, device, setting, count=counts[-1]) if "image" in kinds else []
    for how in ("eager", "compiled"):
        if how == "compiled":
            compile_rows(
                model,
                backend="inductor" if device.is_cuda else "aot_eager",
                mode="reduce-overhead" if device.is_cuda else None,
            )
        for kind, params in kinds.items():
            for count in counts:
                engine = _Settled(model, config, params, count, in_buckets=how == "compiled")
                name = f"sampling, {kind}, {count} at a time, {how}"
                results += _of_steps(device, setting, engine, kind, name)
    return results


class _Settled:
    """An engine whose requests are all in their course; made anew when they end."""

    def __init__(
        self,
        model: TransfusionModel,
        config: PackageConfig,
        params: dict[str, Any],
        count: int,
        *,
        in_buckets: bool,
    ) -> None:
        self.model, self.config, self.count = model, config, count
        self._in_buckets = in_buckets
        self._requests = [
            Request((TextPart(tuple(range(1, PREFIX))),), SamplingParams(**params, seed=seed))
            for seed in range(count)
        ]

    def begin(self) -> Engine:
        """At the first step that counts."""
        engine = Engine(self.model, self.config, max_rows=self.count, in_buckets=self._in_buckets)
        engine.submit(self._requests)
        for _ in range(SETTLED):
            engine.step()
        return engine


def _of_steps(
    device: Device, setting: Setting, settled: _Settled, kind: str, name: str
) -> list[Result]:
    settled.begin().step()  # what is compiled is compiled here
    seconds, forward = [], []
    for _ in range(setting.rounds):
        engine = settled.begin()
        with _recorded(settled.model) as passes:
            engine.step()
        for _ in range(STEPS - SETTLED - 2):
            began = device.now()
            engine.step()
            middle = device.now()
            passes[0]()
            forward.append(device.now() - middle)
            seconds.append(middle - began)
    step, bare = statistics.median(seconds), statistics.median(forward)
    weights = sum(w.numel() for w in settled.model.blocks.parameters())
    rows = settled.count * (1 if kind == "text" else 2 * settled.config.num_patches)
    least = max(
        2 * weights * rows / device.gemm_tflops / 1e12, 2 * weights / device.copy_gb_s / 1e9
    )
    results = [
        Result(
            name=name,
            value=settled.count / step / (1 if kind == "text" else STEPS),
            unit="tokens/s" if kind == "text" else "images/s",
            reference=settled.count / bare / (1 if kind == "text" else STEPS),
            ratio=bare / step,
            against="its forward passes, bare",
        ),
        Result(
            name=f"{name}, a step",
            value=1e3 * step,
            unit="ms",
            reference=1e3 * least,
            ratio=least / step,
            against="the blocks' arithmetic, or reading their weights",
        ),
    ]
    if device.is_cuda:
        gaps = _gaps(settled.begin())
        results.append(
            Result(
                name=f"{name}, the GPU waits",
                value=gaps,
                unit="of a step",
                reference=GAPS,
                ratio=GAPS / gaps if gaps else None,
                bar=1.0,
                against="the most it may",
            )
        )
    return results


@contextmanager
def _recorded(model: TransfusionModel) -> Iterator[list[Callable[[], Any]]]:
    """Forward passes that are made within, to be made again: they write what they wrote."""
    passes: list[Callable[[], Any]] = []
    transform = model.transform

    def recording(hidden: Any, **given: Any) -> Any:
        kept = hidden.clone()

        @torch.inference_mode()
        def again() -> None:
            transform(kept, **given)

        passes.append(again)
        return transform(hidden, **given)

    model.transform = recording  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        del model.transform


def _gaps(engine: Engine) -> float:
    """Share of the time from the first kernel to the last in which none runs."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            engine.step()
        torch.cuda.synchronize()
    kernels = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    return idle_share(kernels)


def idle_share(busy: Sequence[tuple[float, float]]) -> float:
    """Of the time between the first start and the last end; intervals by their starts, and they may overlap."""
    idle, end = 0.0, busy[0][0]
    for start, stop in busy:
        idle += max(start - end, 0.0)
        end = max(end, stop)
    return idle / (end - busy[0][0])


def _mixing(
    model: TransfusionModel, config: PackageConfig, device: Device, setting: Setting, *, count: int
) -> list[Result]:
    """As on a CPU, eager; its bar is only of a GPU."""
    found = mixing.measure(
        model, config, count=count, steps=STEPS, rounds=setting.rounds, clock=device.now
    )
    if device.is_cuda:
        return found
    return [dataclasses.replace(result, bar=None) for result in found]


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
