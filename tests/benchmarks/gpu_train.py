"""What a training step makes of one GPU: `python -m tests.benchmarks.gpu_train [--preset 1.4B --preset 7B]`.

Needs torch, numpy, einops, jaxtyping, pydantic and rich. The whole of a step (forward, backward, clipping, AdamW,
average), in bf16 with fp32 masters, of packed text and images: with attention by key ranges, with a dense
mask, and as if all were causal text; eager and with blocks compiled. Of each: MFU at the pairs that are seen,
positions a second, peak memory, and how often something was compiled after the warm-up. An update is of four
micro-batches (`--accumulate`), as of 2 M positions on 16 GPUs. Not yet measured on CUDA.
`--device cpu --preset tiny --length 128 --sequences 1` shows in a minute that the paths hold.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.benchmarks.batches import density, make_batch
from tests.benchmarks.gpu_device import Device, describe
from tests.benchmarks.gpu_setting import Setting, make_model, num_compiles
from tests.benchmarks.measure import Result
from tests.benchmarks.table import show
from tests.benchmarks.worlds import one_process
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.attention import Attend, plan_attention
from transfusion.model.blockwise import sees
from transfusion.model.flops import Work, training_flops
from transfusion.objective import ChunkedTextLosses, combine, loss_sums
from transfusion.sequence.batch import PackedBatch
from transfusion.train.adam import make_optimizer
from transfusion.train.blocks import ActivationCheckpointing, checkpoint_blocks, compile_blocks
from transfusion.train.config import TrainConfig
from transfusion.train.loop_config import AdamMoments
from transfusion.train.parallel import (
    AveragedWeights,
    data_mesh,
    hold_gathered,
    local,
    set_precision,
    shard,
)

WARM_UP_STEPS = 3
MFU_BAR = 0.5
"""The best that is published of a model of text and images is 0.237 (Megatron-Bridge's BAGEL, 32 H100)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How a model is made to fit one GPU of 140 GiB."""

    sequences: int
    """Of a micro-batch."""
    moments: AdamMoments = "fp32"
    averaged: bool = True
    checkpointing: ActivationCheckpointing = "none"
    chunk_rows: int | None = None
    gathered_for: Literal["layer", "step"] = "layer"


FITTING: Mapping[str, Memory] = {
    "1.4B": Memory(sequences=8, chunk_rows=8192),
    # Masters, gradients and moments are 12 bytes a weight, 81 GB; with fp32 moments and an average it would be 20.
    "7B": Memory(
        sequences=2, moments="bf16", averaged=False, checkpointing="selective", chunk_rows=4096
    ),
}


class Training:
    """Steps of one model, whose attention can be exchanged."""

    def __init__(
        self,
        device: Device,
        setting: Setting,
        memory: Memory,
        *,
        backend: str | None,
        accumulate: int = 1,
    ) -> None:
        set_precision("bf16", device=device.torch, cpu_threads=torch.get_num_threads())
        self._batches = [make_batch(setting.packing, seed=n).to(device.torch) for n in range(3)]
        self._memory = memory
        self._accumulate = accumulate
        model = make_model(setting, "meta")
        checkpoint_blocks(model.blocks, memory.checkpointing)
        if backend is not None:
            compile_blocks(model.blocks, backend=backend)
        shard(model, blocks=model.blocks, mesh=data_mesh(device.torch), precision="bf16")
        model.to_empty(device=device.torch)
        with torch.no_grad():
            for weight in model.parameters():
                # Speed does not depend on the values; those of training would take minutes to draw.
                local(weight).normal_(std=0.02) if weight.ndim > 1 else weight.fill_(1.0)
        config = TrainConfig(steps=1, seed=0, model=setting.model, adam_moments=memory.moments)
        self._model: nn.Module = model
        self._optimizer = make_optimizer(model, config)
        self._averaged = AveragedWeights(model) if memory.averaged else None
        self._path = noise_path("cosine").to(device.torch)
        self._taken = 0

    @property
    def batch(self) -> PackedBatch:
        """One of those that are trained on; all are of one shape."""
        return self._batches[0]

    def step(self) -> None:
        """One update of the weights."""
        for index in range(self._accumulate):
            if self._memory.gathered_for == "step":
                hold_gathered(self._model, after_backward=index < self._accumulate - 1)
            self._forward_backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._averaged is not None:
            self._averaged.update(decay=0.999)

    def _forward_backward(self) -> None:
        batch = self._batches[self._taken % len(self._batches)]
        self._taken += 1
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, self._path)
        chunked = None
        if self._memory.chunk_rows is not None:
            chunked = ChunkedTextLosses(
                targets=batch.text_targets, chunk_rows=self._memory.chunk_rows
            )
        sums = loss_sums(self._model(batch, noisy, chunked), batch)
        share = combine(sums, global_lm_count=sums.lm_count, global_image_count=sums.image_count)
        (share / self._accumulate).backward()


def plan_dense(lo: Tensor, hi: Tensor, **_: object) -> Attend:
    """The same pairs through a mask of all pairs."""
    mask = sees(lo, hi, first=0, last=lo.shape[1])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)

    return attend


def plan_causal(_lo: Tensor, _hi: Tensor, **_: object) -> Attend:
    """Every position sees all before it: a language model's, by the fastest kernel that torch has."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)

    return attend


PLANS: Mapping[str, Callable[..., Attend]] = {
    "key ranges": plan_attention,
    "dense mask": plan_dense,
    "causal only": plan_causal,
}


@contextmanager
def attention_by(name: str) -> Iterator[None]:
    """A model's attention is planned so."""
    with patch("transfusion.model.transformer.plan_attention", PLANS[name]):
        yield


def measure(
    device: Device,
    setting: Setting,
    memory: Memory,
    *,
    backend: str | None,
    accumulate: int = 1,
) -> Iterator[Result]:
    """Steps of a preset with each kind of attention, in turns."""
    training = Training(device, setting, memory, backend=backend, accumulate=accumulate)
    batch = training.batch
    peaks = {}

    def run(name: str) -> Callable[[], None]:
        def step() -> None:
            with attention_by(name):
                training.step()

        return step

    runs = {name: run(name) for name in PLANS}
    for name, step in runs.items():
        for _ in range(WARM_UP_STEPS):
            step()
        device.free()
        step()
        peaks[name] = device.peak_gib()
    before = num_compiles()
    turns = device.turns(runs, rounds=setting.rounds)
    compiled_again = num_compiles() - before
    flops = {
        name: training_flops(
            setting.model,
            work,
            vocab_size=training_vocab(setting),
            latent_shape=setting.packing.latent,
        )
        for name, work in works(batch).items()
    }
    for name in PLANS:
        about = f"{setting.preset}, {'compiled' if backend else 'eager'}, {name}"
        rate = accumulate * flops[name] / turns.median(name) / 1e12
        bar = MFU_BAR if device.is_cuda and backend and name == "key ranges" else None
        yield Result(
            name=f"{about}, {density(batch):.0%} of pairs seen" if name != "causal only" else about,
            value=rate,
            unit="TFLOP/s",
            reference=device.sheet_tflops,
            ratio=rate / device.sheet_tflops,
            bar=bar,
            against="the maker's sheet (MFU)",
        )
        positions = accumulate * batch.token_ids.numel() / turns.median(name)
        yield Result(
            name=about,
            value=positions,
            unit="positions/s",
            reference=positions * turns.ratio("causal only", name),
            ratio=turns.ratio(name, "causal only"),
            against="causal only",
        )
        images = accumulate * float(batch.image_weight.sum()) / turns.median(name)
        yield Result(name=about, value=images, unit="images/s")
        yield Result(name=about, value=peaks[name], unit="GiB at most")
    yield Result(
        name=f"{setting.preset}, {'compiled' if backend else 'eager'}, compiled after the warm-up",
        value=compiled_again,
        unit="times",
        reference=0.0,
        ratio=1.0 / (1.0 + compiled_again),
        bar=1.0,
        against="static shapes",
    )


def works(batch: PackedBatch) -> dict[str, Work]:
    """What is asked for: a dense mask computes more pairs, which do not count."""
    seen = Work.of(batch)
    count, length = batch.token_ids.shape
    causal = Work(
        positions=seen.positions,
        text_rows=seen.text_rows,
        images=seen.images,
        key_pairs=count * length * (length + 1) // 2,
    )
    return {"key ranges": seen, "dense mask": seen, "causal only": causal}


def training_vocab(setting: Setting) -> int:
    """Of the packing, special tokens included."""
    return make_model(setting, "meta").vocab_size


def main(given: Sequence[str] | None = None) -> int:
    """All presets, eager and compiled; what fails is told, and the others go on."""
    arguments = _arguments(given)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --device cpu runs the same paths, slowly")
        return 2
    device = Device(arguments.device)
    results: list[Result] = []
    faults: dict[str, str] = {}
    with one_process("nccl" if device.is_cuda else "gloo"):
        for preset in arguments.preset or ["1.4B", "7B"]:
            memory = replace(
                FITTING.get(preset, FITTING["7B"]), gathered_for=arguments.gathered_for
            )
            setting = Setting(
                preset=preset,
                sequences=arguments.sequences or memory.sequences,
                length=arguments.length,
                rounds=arguments.rounds,
            )
            for backend in arguments.compile:
                about = f"{preset}, {backend}"
                try:
                    chosen = None if backend == "off" else backend
                    results += measure(
                        device, setting, memory, backend=chosen, accumulate=arguments.accumulate
                    )
                except Exception as error:
                    faults[about] = f"{type(error).__name__}: {error}"
                device.forget()
                record = {
                    "machine": describe(device),
                    "setting": vars(arguments) | {"out": str(arguments.out)},
                    "results": [result.to_json() for result in results],
                    "faults": faults,
                }
                # Written after each part: a lease that ends early leaves what was measured.
                arguments.out.write_text(json.dumps(record, indent=1) + "\n")
                print(f"{about}: {'failed' if about in faults else 'done'}", file=sys.stderr)
    title = (
        f"{device.name}, torch {torch.__version__}, {arguments.accumulate} micro-batches an update"
    )
    show(results, title=title)
    for about, fault in faults.items():
        print(f"{about}: {fault}")
    return 1 if faults or any(result.holds is False for result in results) else 0


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_train")
    parser.add_argument("--preset", action="append", help="may be repeated; 1.4B and 7B")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sequences", type=int, help="of a micro-batch; what fits an H200")
    parser.add_argument("--length", type=int, default=4096, help="positions of a sequence")
    parser.add_argument(
        "--accumulate", type=int, default=4, help="micro-batches of an update of the weights"
    )
    parser.add_argument(
        "--gathered-for",
        default="layer",
        choices=("layer", "step"),
        help="as in a profile: weights in bf16 are made anew for each micro-batch, or once an update",
    )
    parser.add_argument("--rounds", type=int, default=8, help="turns of each kind of attention")
    parser.add_argument(
        "--compile",
        nargs="+",
        default=["off", "inductor"],
        choices=("off", "inductor", "aot_eager"),
    )
    parser.add_argument("--out", type=Path, default=Path("gpu_train.json"))
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
