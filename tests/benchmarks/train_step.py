"""A training step beside the time of its own products."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.batches import QUICKSTART, make_batch
from tests.benchmarks.measure import Options, Products, Result, take_turns
from tests.benchmarks.steps import OneBatch, Training, with_precision
from tests.benchmarks.worlds import one_process
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.config import ModelConfig
from transfusion.model.presets import PRESETS
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums
from transfusion.sequence.batch import PackedBatch
from transfusion.sequence.special import SpecialIds
from transfusion.train.loop_config import Precision
from transfusion.train.parallel import cpu_has_bf16

PRECISIONS: dict[Precision, float] = {"fp32": 0.5, "fp32_bf16_inner": 0.4, "bf16": 0.3}
"""The least share of the step that is to be spent in products."""


def run(options: Options) -> list[Result]:
    """The quickstart's step in each precision."""
    torch.set_num_threads(1)
    results = []
    with one_process():
        for precision, bar in PRECISIONS.items():
            if precision == "fp32" or cpu_has_bf16():
                results += _against_products(precision, bar, options)
    set_back = with_precision("fp32", lambda: None)
    set_back()
    return results


def _against_products(precision: Precision, bar: float, options: Options) -> list[Result]:
    batch = make_batch(QUICKSTART)
    config = PRESETS["quickstart"]
    training = Training(
        OneBatch(batch),
        config,
        precision=precision,
        num_pieces=QUICKSTART.num_pieces,
        latent_channels=QUICKSTART.latent[0],
    )
    products, flops = record(config, batch, QUICKSTART.num_pieces, bf16=precision == "bf16")
    turns = take_turns(
        {
            "step": training.step,
            "products": with_precision(precision, products.run),
            "gemm": with_precision(precision, _large_gemm(bf16=precision == "bf16")),
        },
        rounds=2 * options.rounds,
    )
    positions = batch.token_ids.numel()
    rate = flops / turns.median("step") / 1e9
    peak = _GEMM_FLOPS / turns.median("gemm") / 1e9
    return [
        Result(
            name=f"train step, quickstart, {precision}",
            value=positions / turns.median("step"),
            unit="positions/s",
            reference=positions / turns.median("products"),
            ratio=1 / turns.ratio("products", "step"),
            bar=bar,
            against="its own products, bare",
        ),
        Result(
            name=f"arithmetic of the step, {precision}",
            value=rate,
            unit="GFLOP/s",
            reference=peak,
            ratio=rate / peak,
            against="one product of 1024 x 1024 x 1024",
        ),
    ]


def record(
    config: ModelConfig, batch: PackedBatch, num_pieces: int, *, bf16: bool
) -> tuple[Products, int]:
    """The products of forward and backward, and their FLOPs."""
    model = _model(config, num_pieces, batch.latents.shape[1])
    loss = _loss(model.bfloat16() if bf16 else model, batch)
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    with Products() as products:
        loss().backward()
    return products, counter.get_total_flops()


def _model(config: ModelConfig, num_pieces: int, channels: int) -> TransfusionModel:
    vocab_size = SpecialIds.after(num_pieces).vocab_size
    model = TransfusionModel(config, vocab_size=vocab_size, latent_channels=channels)
    model.init_weights(0)
    return model


def _loss(model: TransfusionModel, batch: PackedBatch) -> Callable[[], Tensor]:
    schedule = noise_path("cosine")

    def loss() -> Tensor:
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, schedule)
        sums = loss_sums(model(batch, noisy), batch)
        return combine(sums, global_lm_count=sums.lm_count, global_image_count=sums.image_count)

    return loss


_GEMM_FLOPS = 2 * 1024**3


def _large_gemm(*, bf16: bool) -> Callable[[], None]:
    a, b = (torch.randn(1024, 1024, dtype=torch.bfloat16 if bf16 else None) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)

    return product
