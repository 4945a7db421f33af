"""From hidden states to tokens: sampling for all rows of a step at once, and what the model thought of tokens.

Axes: n = rows of a step, b = those that sample, d = width, v = vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from transfusion.model.transformer import TransfusionModel
from transfusion.package.format import PackageConfig
from transfusion.sample.drawing import CodeDrawing
from transfusion.sample.events import TokenScore
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Row
from transfusion.sample.text import next_tokens

SCORED_AT_ONCE = 1024
"""Positions of prompts whose logits exist at once."""


class TokenSampler:
    """Knows which ids may come, and draws them."""

    def __init__(self, model: TransfusionModel, config: PackageConfig) -> None:
        self._model, self._special = model, config.special
        device = next(model.parameters()).device
        # PAD, BOS, EOI and codes never (EOI is appended by rule); BOI while an image may still be drawn.
        allowed = torch.ones(model.vocab_size, dtype=torch.bool)
        allowed[[self._special.pad, self._special.bos, self._special.eoi]] = False
        allowed[self._special.first_code :] = False
        self._allowed: Bool[Tensor, " v"] = allowed.to(device)
        self._device = device

    def sample(self, rows: Sequence[Row]) -> None:
        """The next token of every row that has a hidden state to sample from."""
        if not rows:
            return
        hidden = torch.stack([row.hidden for row in rows if row.hidden is not None])
        logits = self._model.logits(hidden)
        allowed = self._allowed.repeat(len(rows), 1)
        allowed[:, self._special.boi] = torch.tensor(
            [row.may_draw() for row in rows], device=self._device
        )
        tokens = self._draw(logits, allowed, rows)
        wanted = [index for index, row in enumerate(rows) if row.params.logprobs is not None]
        scores = {}
        if wanted:
            most = max(rows[index].params.logprobs or 0 for index in wanted)
            given = scored(logits[wanted], [tokens[index] for index in wanted], most)
            scores = dict(zip(wanted, given, strict=True))
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            score = scores.get(index)
            row.take(token, None if score is None else _few(score, row.params.logprobs))

    def _draw(
        self, logits: Float[Tensor, "b v"], allowed: Bool[Tensor, "b v"], rows: Sequence[Row]
    ) -> list[int]:
        params, device = [row.params for row in rows], self._device
        if all(one.temperature == 0 for one in params):
            return [int(token) for token in logits.masked_fill(~allowed, -torch.inf).argmax(-1)]
        # Greedy rows draw nothing: a row's draws are its own.
        uniform = [
            torch.rand((), generator=row.generator).item() if row.params.temperature > 0 else 0.0
            for row in rows
        ]
        tokens = next_tokens(
            logits,
            allowed=allowed,
            temperature=torch.tensor([one.temperature for one in params], device=device),
            top_p=torch.tensor([one.top_p for one in params], device=device),
            top_k=torch.tensor([min(one.top_k, logits.shape[-1]) for one in params], device=device),
            uniform=torch.tensor(uniform, device=device),
        )
        return [int(token) for token in tokens.tolist()]

    def sample_codes(self, drawings: Sequence[CodeDrawing], hidden: Float[Tensor, "n d"]) -> None:
        """The next code of every image that is drawn."""
        device = self._device
        rows = torch.tensor([row for one in drawings for row in one.rows], device=device)
        every = self._model.logits(hidden[rows])[:, self._special.first_code :].float()
        scores = torch.stack(
            [
                one.scores(of_one)
                for one, of_one in zip(
                    drawings, every.split([len(one.rows) for one in drawings]), strict=True
                )
            ]
        )
        params = [one.params for one in drawings]
        codes = next_tokens(
            scores,
            allowed=torch.ones_like(scores, dtype=torch.bool),
            temperature=torch.tensor([one.code_temperature for one in params], device=device),
            top_p=torch.tensor([one.code_top_p for one in params], device=device),
            top_k=torch.zeros(len(drawings), dtype=torch.long, device=device),
            uniform=torch.stack([one.uniform[len(one.codes)] for one in drawings]).to(device),
        )
        for one, code in zip(drawings, codes.tolist(), strict=True):
            one.codes.append(code)

    def score_prompts(self, rows: Sequence[Row], hidden: Float[Tensor, "n d"]) -> None:
        """What the model thought of the prompts that were read in this step, where that was asked for."""
        for row in rows:
            most = row.params.prompt_logprobs
            if row.state != "prompt" or most is None or row.last_row is None:
                continue
            tokens = list(_prompt_tokens(row, pad=self._special.pad))
            first = row.last_row + 1 - len(tokens)
            row.prompt_scores = [TokenScore(tokens[0], None)]
            for start in range(0, len(tokens) - 1, SCORED_AT_ONCE):
                targets = tokens[start + 1 : start + 1 + SCORED_AT_ONCE]
                logits = self._model.logits(hidden[first + start : first + start + len(targets)])
                row.prompt_scores.extend(scored(logits, targets, most))


def _prompt_tokens(row: Row, *, pad: int) -> Iterator[int]:
    """One id for each position of a prompt; of patches that of padding."""
    special, config = row.config.special, row.config
    yield special.bos
    for part in row.request.prompt:
        if isinstance(part, TextPart):
            yield from part.ids
        else:
            yield from (special.boi, *[pad] * config.num_patches, special.eoi)


def scored(logits: Float[Tensor, "b v"], tokens: Sequence[int], most: int) -> list[TokenScore]:
    """What the model thought of tokens, and the `most` likeliest in their place."""
    logprobs = logits.float().log_softmax(dim=-1)
    of_tokens = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    best, ids = logprobs.topk(min(most, logits.shape[1]), dim=-1)
    return [
        TokenScore(token, logprob, tuple(zip(which, values, strict=True)))
        for token, logprob, which, values in zip(
            tokens, of_tokens.tolist(), ids.tolist(), best.tolist(), strict=True
        )
    ]


def _few(score: TokenScore, most: int | None) -> TokenScore:
    return TokenScore(score.token, score.logprob, score.top[: most or 0])
