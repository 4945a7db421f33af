"""The training step beside transfusion-pytorch on the same documents, half of whose positions are 64-token images.

Ours is the step that a run takes: sharded, both losses, measures, clipping, AdamW, averaged weights. Theirs is
forward, backward, AdamW. They are compared at the same width, and at the same number of parameters, for two thirds
of theirs are conditioning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks import rival
from tests.benchmarks.measure import Options, Result, take_turns
from tests.benchmarks.steps import OneBatch, Training, with_precision
from tests.benchmarks.train_step import record
from tests.benchmarks.worlds import one_process
from transfusion.model.config import ModelConfig
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds
from transfusion.train.loop_config import Precision
from transfusion.train.parallel import cpu_has_bf16, set_precision

SIZE = rival.Size()
LATENT = (8, 2 * SIZE.side, 2 * SIZE.side)
MODELS = {
    "same width": ModelConfig(dim=SIZE.dim, depth=SIZE.depth, num_heads=SIZE.num_heads),
    "same parameters": ModelConfig(dim=448, depth=SIZE.depth, num_heads=7),
}
GEMM_BAR = 0.7
"""Least share of the step in its own products, at the rival's number of parameters."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a step sees."""

    name: str
    count: int
    images: int
    """Of each sequence, with a text before each."""
    text_tokens: int
    bars: dict[tuple[str, Precision], float]
    """Least ratio, by model and precision."""


CASES = (
    Case(
        name="2 x 512",
        count=2,
        images=4,
        text_tokens=61,
        bars={("same width", "fp32"): 2.5, ("same width", "bf16"): 2.2, ("same parameters", "fp32"): 1.1},
    ),
    Case(
        name="1 x 2048",
        count=1,
        images=16,
        text_tokens=61,
        bars={("same width", "fp32"): 3.5, ("same parameters", "fp32"): 1.6},
    ),
)  # fmt: skip


def run(options: Options) -> list[Result]:
    """Both cases in fp32, and in bf16 where the CPU has it; nothing where the rival is not installed."""
    if not rival.is_here():
        return []
    torch.set_num_threads(1)
    results = []
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    with one_process():
        for case in CASES:
            for precision in precisions:
                results += _measure(case, precision, options)
    set_precision("fp32", device=torch.device("cpu"), cpu_threads=1)
    return results


def _measure(case: Case, precision: Precision, options: Options) -> list[Result]:
    documents = rival.documents(
        SIZE, count=case.count, images=case.images, text_tokens=case.text_tokens
    )
    batch = same_batch(documents)
    steps = {name: _training(config, batch, precision).step for name, config in MODELS.items()}
    theirs = rival.make_step(rival.make_rival(SIZE), documents)
    steps["rival"] = with_precision("fp32", _in_bf16(theirs) if precision == "bf16" else theirs)
    same = MODELS["same parameters"]
    products, _ = record(same, batch, SIZE.num_pieces, bf16=precision == "bf16")
    steps["products"] = with_precision(precision, products.run)
    turns = take_turns(steps, rounds=options.rounds)
    tokens = case.count * case.images * (case.text_tokens + SIZE.side**2)

    def result(
        what: str,
        name: str,
        reference: Literal["rival", "products"],
        bar: float | None,
        against: str,
    ) -> Result:
        return Result(
            name=f"{what}, {case.name}, {precision}",
            value=tokens / turns.median(name),
            unit="tokens/s",
            reference=tokens / turns.median(reference),
            ratio=turns.ratio(name, reference),
            bar=bar,
            against=against,
        )

    found = [
        result(f"train step, {name}", name, "rival", case.bars.get((name, precision)), "transfusion-pytorch")
        for name in MODELS
    ]  # fmt: skip
    own = "its own products, bare"
    bar = GEMM_BAR if precision == "fp32" else None
    return [*found, result("train step, same parameters", "same parameters", "products", bar, own)]


def _training(config: ModelConfig, batch: PackedBatch, precision: Precision) -> Training:
    return Training(
        OneBatch(batch),
        config,
        precision=precision,
        num_pieces=SIZE.num_pieces,
        latent_channels=LATENT[0],
    )


def _in_bf16(step: Callable[[], None]) -> Callable[[], None]:
    """As its users would: autocast."""

    def cast() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            step()

    return cast


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
    count, images = len(documents), sum(part.is_floating_point() for part in documents[0])
    return assemble(
        sequences,
        layout=layout,
        special=SpecialIds.after(SIZE.num_pieces),
        sequence_length=length,
        image_slots=count * images,
        text_rows=count * (length - 1 - images * (SIZE.side**2 + 1)),
        latent_shape=LATENT,
    )
