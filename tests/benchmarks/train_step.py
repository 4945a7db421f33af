"""A training step beside the time of its own products, and beside transfusion-pytorch on the same documents."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import rival
from tests.benchmarks.batches import QUICKSTART, make_batch
from tests.benchmarks.measure import Options, Products, Result, take_turns
from tests.benchmarks.steps import OneBatch, Training, with_precision
from tests.benchmarks.worlds import one_process
from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.config import ModelConfig
from transfusion.model.presets import PRESETS
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.train.loop_config import Precision
from transfusion.train.parallel import cpu_has_bf16

PRECISIONS: dict[Precision, float] = {"fp32": 0.5, "fp32_bf16_inner": 0.4, "bf16": 0.3}
"""The least share of the step that is to be spent in products."""

SIZE = rival.Size()
LATENT = (8, 2 * SIZE.side, 2 * SIZE.side)
COUNT, IMAGES, TEXT_TOKENS = 2, 4, 56


def run(options: Options) -> list[Result]:
    """The quickstart's step in each precision; then the rival's, if it is here."""
    torch.set_num_threads(1)
    results = []
    with one_process():
        for precision, bar in PRECISIONS.items():
            if precision == "fp32" or cpu_has_bf16():
                results += _against_products(precision, bar, options)
    if rival.is_here():
        results += _against_rival(options)
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


def _against_rival(options: Options) -> list[Result]:
    """Of the same width, and of the same number of parameters, for half of its go to conditioning."""
    theirs = rival.make_rival(SIZE)
    documents = rival.documents(SIZE, count=COUNT, images=IMAGES, text_tokens=TEXT_TOKENS)
    batch = same_batch(documents)
    wider = ModelConfig(dim=448, depth=SIZE.depth, num_heads=7)
    same = ModelConfig(dim=SIZE.dim, depth=SIZE.depth, num_heads=SIZE.num_heads)
    models = {"same width": same, "same parameters": wider}
    tokens = COUNT * IMAGES * (TEXT_TOKENS + SIZE.side**2)
    results = []
    precisions: tuple[Precision, ...] = ("fp32", "fp32_bf16_inner")
    for precision in precisions if cpu_has_bf16() else precisions[:1]:
        steps = {
            name: with_precision(precision, _plain_step(config, batch))
            for name, config in models.items()
        }
        steps["rival"] = with_precision(precision, rival.make_step(theirs, documents))
        turns = take_turns(steps, rounds=options.rounds)
        for name in models:
            results.append(
                Result(
                    name=f"train step, {name}, {precision}",
                    value=tokens / turns.median(name),
                    unit="tokens/s",
                    reference=tokens / turns.median("rival"),
                    ratio=turns.ratio(name, "rival"),
                    bar=2.0 if name == "same width" else 1.0,
                    against="transfusion-pytorch",
                )
            )
    return results


def _plain_step(config: ModelConfig, batch: PackedBatch) -> Callable[[], None]:
    model = _model(config, SIZE.num_pieces, LATENT[0])
    loss = _loss(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def same_batch(documents: list[list[Tensor]]) -> PackedBatch:
    """The rival's documents, each a sequence of ours."""
    rng = np.random.default_rng(0)

    def span(part: Tensor) -> TextSpan | ImageSpan[ImageInput]:
        if not part.is_floating_point():
            return TextSpan(part.numpy().astype(np.int32))
        latent, noise = rng.standard_normal((2, *LATENT), dtype=np.float32)
        return ImageSpan(SIZE.side, SIZE.side, ImageInput(latent=latent, noise=noise, timestep=500))

    sequences = [[Document(tuple(span(part) for part in parts))] for parts in documents]
    layout = SequenceLayout(patch_size=2)
    length = layout.document_length(sequences[0][0])
    patches = SIZE.side**2
    return assemble(
        sequences,
        layout=layout,
        special=SpecialIds.after(SIZE.num_pieces),
        sequence_length=length,
        image_slots=COUNT * IMAGES,
        text_rows=COUNT * (length - 1 - IMAGES * (patches + 1)),
        latent_shape=LATENT,
    )
