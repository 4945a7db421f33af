"""Attention by key ranges against one dense mask, forward and backward, the planning included."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.benchmarks.batches import QUICKSTART, Packing, density, make_batch
from tests.benchmarks.measure import Options, Result, repeat_for, take_turns
from transfusion.model.attention import plan_attention
from transfusion.model.blockwise import sees

LAYERS = 4
"""That share a plan, or a mask."""

PACKINGS = {
    #          heads, width of a head, least ratio, packing
    "quickstart 5 x 256": (5, 32, 1.5, QUICKSTART),
    "captioned 1 x 1024": (
        4,
        64,
        1.5,
        Packing(sequences=1, length=1024, images=3, latent=(8, 32, 32)),
    ),
    "captioned 1 x 2048": (
        4,
        64,
        2.0,
        Packing(sequences=1, length=2048, images=6, latent=(8, 32, 32)),
    ),
    "one text 1 x 2048": (
        4,
        64,
        0.9,
        Packing(sequences=1, length=2048, images=0, prose_tokens=2046),
    ),
}


def run(options: Options) -> list[Result]:
    """One result a packing, in fp32."""
    torch.set_num_threads(1)
    results = []
    for name, (heads, width, bar, packing) in PACKINGS.items():
        batch = make_batch(packing)
        shape = (packing.sequences, heads, packing.length, width)
        inputs = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        weight = torch.randn(shape)

        def ranges(
            inputs: list[Tensor] = inputs,
            weight: Tensor = weight,
            lo: Tensor = batch.lo,
            hi: Tensor = batch.hi,
        ) -> None:
            _layers(plan_attention(lo, hi, query_block=32), inputs, weight)

        def dense(
            inputs: list[Tensor] = inputs,
            weight: Tensor = weight,
            lo: Tensor = batch.lo,
            hi: Tensor = batch.hi,
        ) -> None:
            mask = sees(lo, hi, first=0, last=lo.shape[1])
            _layers(
                lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask),
                inputs,
                weight,
            )

        count = repeat_for(ranges, seconds=0.15)
        turns = take_turns(
            {"ranges": _times(ranges, count), "dense": _times(dense, count)}, rounds=options.rounds
        )
        results.append(
            Result(
                name=f"attention, {name}, {density(batch):.0%} seen",
                value=1e3 * turns.median("ranges") / count / LAYERS,
                unit="ms/layer",
                reference=1e3 * turns.median("dense") / count / LAYERS,
                ratio=turns.ratio("ranges", "dense"),
                bar=bar,
                against="one SDPA with a dense mask",
            )
        )
    return results


def _layers(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], weight: Tensor
) -> None:
    for _ in range(LAYERS):
        out = attend(*inputs)
        torch.autograd.grad(out, inputs, weight)


def _times(run: Callable[[], None], count: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(count):
            run()

    return repeated
