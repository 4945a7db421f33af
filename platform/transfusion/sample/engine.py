"""The engine: writes text and draws images for many requests at once, switching modes at BOI and EOI.

    text mode    one token a step for every row, until each row has ended or sampled BOI
    image mode   all rows that wait at BOI draw together (alike ones in one batch); the clean image is read at
                 t = 0, EOI behind it, and the row is back in text mode, where later text sees the image

Where images are tokens, image mode draws their codes, and codes come in no other mode.

Caps on tokens, images and context are hard: a row at its cap cannot sample BOI, or ends with "length".
A row's draws come from its own generator, so that batch mates change nothing but the last bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfusion.model.cache import KeyValueCache
from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.codes import draw_codes
from transfusion.sample.denoise import Watch, draw_images
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, Part, TextPart, length_of, read, read_tokens
from transfusion.sample.rows import FinishReason, Request, Row, check_request, room_for
from transfusion.sample.text import next_tokens


@dataclass(frozen=True, slots=True)
class Result:
    """What came behind the prompt, in order, special tokens left out."""

    parts: tuple[Part, ...]
    finish_reason: FinishReason
    prompt_length: int
    """Positions of the prompt, BOS and patches included."""
    num_tokens: int
    """Text tokens written."""

    @property
    def images(self) -> list[Tensor]:
        """The normalised latents drawn, or codes."""
        return [part.latent for part in self.parts if isinstance(part, ImagePart)]


@torch.inference_mode()
def generate(
    model: TransfusionModel,
    config: PackageConfig,
    requests: Sequence[Request],
    *,
    watch: Watch | None = None,
) -> list[Result]:
    """Answers requests together; results in their order.

    Args:
        watch: Called between steps; raises to give up all of them.

    Raises:
        ValueError: A prompt does not fit.
    """
    if not requests:
        return []
    for request in requests:
        check_request(request, config)
    prompts = [(TextPart((config.special.bos,)), *request.prompt) for request in requests]
    lengths = [length_of(prompt, config) for prompt in prompts]
    weight = next(model.parameters())
    cache = KeyValueCache.allocate(
        model.config,
        num_rows=len(requests),
        capacity=max(room_for(r.params, n, config) for r, n in zip(requests, lengths, strict=True)),
        device=weight.device,
        dtype=weight.dtype,
    )
    hidden = read(model, cache, prompts, lengths=[0] * len(requests), config=config)
    rows = [
        Row(request, length, torch.Generator().manual_seed(request.params.seed))
        for request, length in zip(requests, lengths, strict=True)
    ]
    for row in rows:
        if row.request.params.image_at_once:
            row.state = "image"
    while any(row.state != "done" for row in rows):
        _write_text(model, config, cache, rows, hidden, watch)
        _draw_images(model, config, cache, rows, hidden, watch)
    return [
        Result(tuple(row.parts), row.finish_reason, length, row.num_tokens)
        for row, length in zip(rows, lengths, strict=True)
    ]


def _write_text(
    model: TransfusionModel,
    config: PackageConfig,
    cache: KeyValueCache,
    rows: list[Row],
    hidden: Float[Tensor, "b d"],
    watch: Watch | None,
) -> None:
    """Steps all rows in text mode until none is left there; `hidden` is what the next token is read from."""
    while active := [i for i, row in enumerate(rows) if row.state == "text"]:
        index = torch.tensor(active, device=hidden.device)
        part = cache.rows(index) if len(active) < len(rows) else cache
        state, group = hidden[index], [rows[i] for i in active]
        # Rows that ended ride along until half of them have: then the rest is gathered anew.
        while 2 * sum(row.state == "text" for row in group) > len(group):
            if watch is not None:
                watch()
            tokens = _sample(model, config, group, state)
            writes = [
                row.state == "text" and row.take(token, config)
                for row, token in zip(group, tokens, strict=True)
            ]
            if any(writes):
                state = read_tokens(
                    model,
                    part,
                    torch.tensor(tokens),
                    lengths=[row.length for row in group],
                    writes=writes,
                )
                for row, wrote in zip(group, writes, strict=True):
                    row.length += int(wrote)
        hidden[index] = state
        if part is not cache:
            cache.put_rows(index, part)


def _sample(
    model: TransfusionModel, config: PackageConfig, rows: list[Row], hidden: Float[Tensor, "b d"]
) -> list[int]:
    params = [row.request.params for row in rows]
    # Greedy and finished rows draw nothing: a row's draws are its own.
    uniform = [
        torch.rand((), generator=row.generator).item()
        if row.state == "text" and row.request.params.temperature > 0
        else 0.0
        for row in rows
    ]
    device = hidden.device
    tokens = next_tokens(
        model.logits(hidden),
        allowed=_allowed(rows, config, model.vocab_size).to(device),
        temperature=torch.tensor([p.temperature for p in params], device=device),
        top_p=torch.tensor([p.top_p for p in params], device=device),
        top_k=torch.tensor([p.top_k for p in params], device=device),
        uniform=torch.tensor(uniform, device=device),
    )
    return [int(token) for token in tokens.tolist()]


def _allowed(rows: list[Row], config: PackageConfig, vocab_size: int) -> Bool[Tensor, "b v"]:
    """PAD, BOS, EOI and codes never (EOI is appended by rule); BOI while an image may still be drawn."""
    special = config.special
    allowed = torch.ones((len(rows), vocab_size), dtype=torch.bool)
    allowed[:, [special.pad, special.bos, special.eoi]] = False
    allowed[:, special.first_code :] = False
    allowed[:, special.boi] = torch.tensor([row.may_draw(config) for row in rows])
    return allowed


def _draw_images(
    model: TransfusionModel,
    config: PackageConfig,
    cache: KeyValueCache,
    rows: list[Row],
    hidden: Float[Tensor, "b d"],
    watch: Watch | None,
) -> None:
    """Draws for all rows that wait at BOI, alike ones in one batch, and puts them back in text mode."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(rows):
        if row.state == "image":
            groups.setdefault(_alike(row.request.params, config), []).append(i)
    draw: Callable[..., Tensor] = draw_codes if config.num_codes else draw_images
    for members in groups.values():
        index = torch.tensor(members, device=hidden.device)
        group = [rows[i] for i in members]
        part = cache.rows(index)
        more = {}
        if group[0].request.params.image_guidance_scale is not None:
            more["conditions"] = [row.conditions_end(config) for row in group]
        latents = draw(
            model,
            part,
            lengths=[row.length for row in group],
            params=group[0].request.params,
            generators=[row.generator for row in group],
            config=config,
            watch=watch,
            **more,
        )
        going_on: list[int] = []
        for i, row, latent in zip(members, group, latents, strict=True):
            row.parts.append(ImagePart(latent))
            row.num_images += 1
            if row.request.params.image_at_once:
                row.end("stop")
            else:
                row.state = "text"
                going_on.append(i)
        if going_on:
            index = torch.tensor(going_on, device=hidden.device)
            part = cache.rows(index)
            hidden[index] = read(
                model,
                part,
                [[rows[i].parts[-1]] for i in going_on],
                lengths=[rows[i].length for i in going_on],
                config=config,
            )
            cache.put_rows(index, part)
            for i in going_on:
                row = rows[i]
                row.length += config.num_patches + 2
                if row.length + 1 > config.sequence_length:
                    row.end("length")


def _alike(params: SamplingParams, config: PackageConfig) -> tuple[object, ...]:
    """What images that are drawn in one batch share."""
    if config.num_codes:
        return params.guidance_scale, params.code_temperature, params.code_top_p
    image_scale = params.image_guidance_scale
    return params.solver, params.num_inference_steps, params.guidance_scale, image_scale
