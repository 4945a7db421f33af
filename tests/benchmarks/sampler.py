"""Sampling: tokens that pass the transformer beside the least that could, and seconds beside the bare products."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks import rival
from tests.benchmarks.measure import Options, Products, Result, take_turns
from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.package.config import SamplingDefaults
from transfusion.package.format import PackageConfig
from transfusion.sample.engine import generate
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.layout import SequenceLayout

SIZE = rival.Size()
PREFIX, STEPS, NEW_TOKENS = 70, 30, 64
"""Positions of the prompt, BOS included; evaluations of an image (the rival's 15 midpoint steps); tokens."""
PATCHES = SIZE.side**2

LONG_SIZE, LONG_PREFIX = rival.Size(side=16), 512
"""Images of 256 patches, behind a long prompt."""

IMAGE = {
    "modalities": ("image",),
    "solver": "dpm++",
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
}
TEXT = {"modalities": ("text",), "max_tokens": NEW_TOKENS, "temperature": 0.0}


@dataclass(frozen=True)
class _Case:
    kind: str
    count: int
    bar: float
    """Least share of its time in bare products."""

    @property
    def unit(self) -> str:
        return "s/image" if self.kind == "image" else "ms/token"

    @property
    def scale(self) -> float:
        return (1.0 if self.kind == "image" else 1e3 / NEW_TOKENS) / self.count


CASES = (
    _Case("image", 1, 0.5),
    _Case("image", 4, 0.6),
    _Case("image", 8, 1 / 1.35),
    _Case("text", 1, 0.25),
    _Case("text", 4, 0.3),
)

RIVALS = (
    # kind, images or texts at once, how it is asked, how many times as fast we are at the least.
    ("image", 1, "sample_one", 5.0),
    ("image", 4, "sample_many", 3.0),
    ("text", 1, "sample_one", 15.0),
    ("text", 1, "sample_one with a cache", 4.0),
    ("text", 4, "sample_many", 2.0),
)

LONG_RIVALS = (("sample_one", 1, 6.0), ("sample_many", 2, 2.8))
"""One turn takes a rival ten seconds: fewer at once, and fewer turns."""
LONG_ROUNDS = 3

LIMITS = {
    # The prefix once; BOI and every denoising step for both branches of guidance.
    "image": PREFIX + 2 + 2 * STEPS * PATCHES,
    # The prompt; every new token but the last is read.
    "text": PREFIX + NEW_TOKENS - 1,
}


def run(options: Options) -> list[Result]:
    """An image and a text of 64 tokens, alone and four at a time."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a replica does; for all that take turns here
    model, config = make_model()
    other_model = rival.make_rival(SIZE).eval() if rival.is_here() else None
    results = []
    for case in CASES:
        params = IMAGE if case.kind == "image" else TEXT
        sample = sampling(model, config, params, count=case.count)
        with counted(model) as seen:
            sample()
        if case.count == 1:
            results.append(_least(case.kind, seen[0]))
        with torch.inference_mode(), Products() as products:
            sample()
        others = [("its own products, bare", products.run, case.bar)]
        for kind, count, method, bar in RIVALS:
            if other_model is not None and (kind, count) == (case.kind, case.count):
                theirs = rival.sampling(
                    other_model, SIZE, method, kind, count, prefix=PREFIX, length=_length(kind)
                )
                others.append((f"transfusion-pytorch, {method}", theirs, bar))
        # Two at a time: what ran before leaves its traces in the caches.
        for against, other, bar in others:
            turns = take_turns({"ours": sample, "other": other}, rounds=options.rounds)
            results.append(
                Result(
                    name=f"sampler, {case.kind}, {case.count} at a time",
                    value=turns.median("ours") * case.scale,
                    unit=case.unit,
                    reference=turns.median("other") * case.scale,
                    ratio=turns.ratio("ours", "other"),
                    bar=bar,
                    against=against,
                )
            )
    return [*results, *(_long(options) if rival.is_here() else [])]


def _length(kind: str) -> int:
    return STEPS if kind == "image" else NEW_TOKENS


def _long(options: Options) -> list[Result]:
    """Large images behind a long prompt."""
    model, config = make_model(LONG_SIZE, sequence_length=1024)
    theirs = rival.make_rival(LONG_SIZE).eval()
    results = []
    for method, count, bar in LONG_RIVALS:
        sample = sampling(model, config, IMAGE, count=count, prefix=LONG_PREFIX)
        other = rival.sampling(
            theirs, LONG_SIZE, method, "image", count, prefix=LONG_PREFIX, length=STEPS
        )
        turns = take_turns(
            {"ours": sample, "other": other}, rounds=min(options.rounds, LONG_ROUNDS)
        )
        results.append(
            Result(
                name=f"sampler, image of {LONG_SIZE.side**2} patches behind {LONG_PREFIX}, {count} at a time",
                value=turns.median("ours") / count,
                unit="s/image",
                reference=turns.median("other") / count,
                ratio=turns.ratio("ours", "other"),
                bar=bar,
                against=f"transfusion-pytorch, {method}",
            )
        )
    return results


def _least(kind: str, seen: int) -> Result:
    limit = LIMITS[kind]
    return Result(
        name=f"sampler, tokens through the transformer, {kind}",
        value=seen,
        unit="tokens",
        reference=limit,
        ratio=limit / seen,
        bar=1.0,
        against="the least there can be",
    )


def make_model(
    size: rival.Size = SIZE, *, sequence_length: int = 512
) -> tuple[TransfusionModel, PackageConfig]:
    """Of the rival's width and depth, with a linear adapter as it has."""
    config = PackageConfig(
        name="benchmark",
        model=ModelConfig(dim=size.dim, depth=size.depth, num_heads=size.num_heads),
        num_pieces=size.num_pieces,
        special_ids={},
        layout=SequenceLayout(patch_size=2),
        sequence_length=sequence_length,
        latent_channels=size.latent_dim // 4,
        latent_height=2 * size.side,
        latent_width=2 * size.side,
        image_size_px=8 * size.side,
        schedule="cosine",
        num_timesteps=1000,
        sampling=SamplingDefaults(),
        files={},
    )
    model = TransfusionModel(
        config.model, vocab_size=config.special.vocab_size, latent_channels=config.latent_channels
    )
    model.init_weights(0)
    with torch.no_grad():
        # EOS is never the likeliest: text goes on to the length that is asked for.
        model.head.weight[config.special.eos] = 0
    return model.eval(), config


def sampling(
    model: TransfusionModel,
    config: PackageConfig,
    params: dict[str, Any],
    *,
    count: int,
    prefix: int = PREFIX,
) -> Callable[[], Any]:
    """Answers `count` requests together."""
    prompt = tuple(range(1, prefix))
    # A prompt object each: none is read for another.
    requests = [
        Request((TextPart(prompt),), SamplingParams(**params, seed=seed)) for seed in range(count)
    ]
    return lambda: generate(model, config, requests)


@contextlib.contextmanager
def counted(model: TransfusionModel) -> Iterator[list[int]]:
    """Counts positions that pass the blocks."""
    seen = [0]

    def count(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen[0] += args[0].shape[0] * args[0].shape[1]

    handle = model.blocks[0].register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()
