"""Sampling: tokens that pass the transformer beside the least that could, and seconds beside the bare products."""

import contextlib
import importlib.util
import io
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

MIXED = 4
"""Images, and as many texts, of the load that is mixed."""

RIVAL_BARS = {("image", 1): 5.0, ("image", 4): 3.0, ("text", 1): 4.0, ("text", 4): 2.0}
"""How many times as fast as transfusion-pytorch: one image by its default, many and all text by its caches."""

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
    rivals = _rival() if rival.is_here() else {}
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
        if (case.kind, case.count) in rivals:
            method, run_rival = rivals[case.kind, case.count]
            bar = RIVAL_BARS[case.kind, case.count]
            others.append((f"transfusion-pytorch, {method}", run_rival, bar))
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
    return [*results, _mixing(model, config, options)]


def _mixing(model: TransfusionModel, config: PackageConfig, options: Options) -> Result:
    """Half text, half images in one engine, beside the two kinds in turn; as many rows at once for both."""
    tokens = {**TEXT, "max_tokens": STEPS}
    images = sampling(model, config, IMAGE, count=MIXED)
    texts = sampling(model, config, tokens, count=MIXED)
    both = [
        Request((TextPart(tuple(range(1, PREFIX))),), SamplingParams(**params, seed=seed))
        for seed in range(MIXED)
        for params in (IMAGE, tokens)
    ]

    def in_turn() -> None:
        images()
        texts()

    turns = take_turns(
        {"ours": lambda: generate(model, config, both), "other": in_turn}, rounds=options.rounds
    )
    return Result(
        name=f"sampler, {MIXED} images and {MIXED} texts of {STEPS} tokens together",
        value=turns.median("ours"),
        unit="s",
        reference=turns.median("other"),
        ratio=turns.ratio("ours", "other"),
        bar=1.3,
        against="the two kinds in turn",
    )


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


def make_model() -> tuple[TransfusionModel, PackageConfig]:
    """Of the rival's width and depth, with a linear adapter as it has."""
    config = PackageConfig(
        name="benchmark",
        model=ModelConfig(dim=SIZE.dim, depth=SIZE.depth, num_heads=SIZE.num_heads),
        num_pieces=SIZE.num_pieces,
        special_ids={},
        layout=SequenceLayout(patch_size=2),
        sequence_length=512,
        latent_channels=SIZE.latent_dim // 4,
        latent_height=2 * SIZE.side,
        latent_width=2 * SIZE.side,
        image_size_px=8 * SIZE.side,
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
    model: TransfusionModel, config: PackageConfig, params: dict[str, Any], *, count: int
) -> Callable[[], Any]:
    """Answers `count` requests together."""
    prompt = tuple(range(1, PREFIX))
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


def _rival() -> dict[tuple[str, int], tuple[str, Callable[[], Any]]]:
    model = rival.make_rival(SIZE).eval()
    if importlib.util.find_spec("loguru"):
        from loguru import logger

        logger.disable("transfusion_pytorch")
    prompt = torch.arange(PREFIX - 1)
    image = {
        "force_modality_at_start": (0, (SIZE.side, SIZE.side)),
        "modality_steps": 1 + STEPS // 2,
        "max_length": PATCHES - 1,
        "cfg_scale": 3.0,
    }
    text = {"max_length": NEW_TOKENS - 1, "text_temperature": 0.0}

    def quiet(run: Callable[[], Any]) -> Callable[[], Any]:
        def without_bars() -> None:
            with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
                run()

        return without_bars

    return {
        ("image", 1): ("sample_one", quiet(lambda: model.sample_one(prompt, **image))),
        ("image", 4): ("sample_many", quiet(lambda: model.sample_many([prompt] * 4, **image))),
        ("text", 1): (
            "sample_one with a cache",
            quiet(lambda: model.sample_one(prompt, cache_kv=True, **text)),
        ),
        ("text", 4): ("sample_many", quiet(lambda: model.sample_many([prompt] * 4, **text))),
    }
