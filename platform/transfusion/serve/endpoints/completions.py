"""`POST /v1/completions`: text behind text; with `echo` and `logprobs`, what the model thinks of a text."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from transfusion.sample.events import Ended, TextWritten, TokenScore
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sample
from transfusion.serve.asking import params_of
from transfusion.serve.deadline import AskedTimeout, Deadline
from transfusion.serve.errors import ApiError
from transfusion.serve.logprobs import Logprobs
from transfusion.serve.prompts import check_token_ids
from transfusion.serve.schema import CompletionRequest
from transfusion.serve.service import Service, usage
from transfusion.serve.streaming import STREAM, Chunks, head, stream

DEFAULT_TOKENS = 16
"""As OpenAI's: a caller who wants more says so."""

Prompt = str | list[int]


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=None, responses=STREAM)
    async def complete(
        body: CompletionRequest, timeout_s: AskedTimeout = None
    ) -> dict[str, Any] | Response:
        count = (body.n or 1) * _num_prompts(body)
        deadline = service.admit(body.model, count=count, asked_s=timeout_s)
        async with deadline.kept():
            answer = await service.decoder.aside(lambda: _Answer(body, service))
        if body.stream:
            return await stream(answer.chunks(deadline))
        samples = await service.ask(answer.requests, deadline)
        # Millions of tokens may have to be spelled, and others' streams go on meanwhile.
        return await asyncio.to_thread(answer.whole, samples)

    return router


class _Answer:
    """One call: its prompts, `n` samples of each, and how they are told."""

    def __init__(self, body: CompletionRequest, service: Service) -> None:
        self.body, self.service = body, service
        self.head = head("cmpl", service.package.name) | {"object": "text_completion"}
        self.prompts = _prompts(body, service)
        self.count = body.n or 1
        self.requests = self._requests()

    def _requests(self) -> list[Request]:
        body, service = self.body, self.service
        most = service.config.max_tokens
        max_tokens = min(DEFAULT_TOKENS, most) if body.max_tokens is None else body.max_tokens
        each = params_of(
            body,
            service,
            count=len(self.prompts) * self.count,
            max_tokens=max_tokens,
            max_images=0,
            prompt_logprobs=body.logprobs if body.echo else None,
            modalities=["text"],
        )
        _check_context(self.prompts, max_tokens, service)
        requests: list[Request] = []
        for index, prompt in enumerate(self.prompts):
            given = prompt if isinstance(prompt, str) else [prompt]
            of_prompt = each[index * self.count : (index + 1) * self.count]
            requests.extend(service.requests(given, of_prompt))
        return requests

    def _before(self, index: int) -> str:
        """What is echoed before a sample."""
        prompt = self.prompts[index // self.count]
        if not self.body.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._text(prompt)

    def _text(self, ids: Sequence[int]) -> str:
        return self.service.processor.package.tokenizer.decode(ids)

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Everything at once."""
        choices = [
            {
                "index": index,
                "text": self._before(index) + sample.text,
                "finish_reason": sample.finish_reason,
                "logprobs": self._logprobs(sample),
            }
            for index, sample in enumerate(samples)
        ]
        read = sum(sample.prompt_tokens for sample in samples[:: self.count])
        written = sum(sample.completion_tokens for sample in samples)
        return self.head | {"choices": choices, "usage": usage(read, written)}

    def _logprobs(self, sample: Sample) -> dict[str, Any] | None:
        """Of an echoed prompt too, BOS left out: the first is said behind BOS."""
        if self.body.logprobs is None:
            return None
        return Logprobs(self._text).of([*sample.prompt_scores[1:], *sample.scores])

    async def chunks(self, deadline: Deadline) -> Chunks:
        """A piece at a time; what is echoed comes with a sample's first, so that the engine is asked before it."""
        read = written = 0
        told = [
            _Told(self._before(index), Logprobs(self._text))
            for index, _ in enumerate(self.requests)
        ]

        def chunk(
            index: int, text: str, scores: Sequence[TokenScore], reason: str | None = None
        ) -> dict[str, Any]:
            before, told[index].before = told[index].before, ""
            choice = {
                "index": index,
                "text": before + text,
                "finish_reason": reason,
                "logprobs": told[index].logprobs.of(scores) if scores else None,
            }
            return self.head | {"choices": [choice]}

        async with aclosing(self.service.events(self.requests, deadline)) as events:
            async for index, event in events:
                if isinstance(event, TextWritten):
                    yield chunk(index, event.text, event.scores)
                elif isinstance(event, Ended):
                    result = event.result
                    read += result.prompt_length if index % self.count == 0 else 0
                    written += result.num_tokens
                    # Of tokens that come with no text of their own, like those cut off by a stop.
                    rest = result.all_scores[told[index].logprobs.count :]
                    yield chunk(index, "", rest, result.finish_reason)
        if self.body.stream_options and self.body.stream_options.include_usage:
            yield self.head | {"choices": [], "usage": usage(read, written)}


@dataclass(slots=True)
class _Told:
    """What a stream has told of a sample."""

    before: str
    """To be echoed still."""
    logprobs: Logprobs


def _num_prompts(body: CompletionRequest) -> int:
    given = body.prompt
    is_one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    return 1 if is_one else len(given)


def _prompts(body: CompletionRequest, service: Service) -> list[Prompt]:
    """Each prompt, as text or as ids.

    Raises:
        ApiError: An id is none of the tokenizer's.
    """
    given = body.prompt
    prompts: list[Any] = [given] if isinstance(given, str) else list(given)
    if prompts and all(isinstance(one, int) for one in prompts):
        prompts = [prompts]
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_token_ids(prompt, service.package.num_pieces, param="prompt")
    return prompts


def _check_context(prompts: Sequence[Prompt], max_tokens: int, service: Service) -> None:
    context = service.package.sequence_length
    for prompt in prompts:
        if isinstance(prompt, str):
            service.check_fits([prompt], "prompt")
            length = service.processor.num_positions(prompt)
        else:
            length = len(prompt) + 1
        if length + max_tokens <= context:
            continue
        raise ApiError(
            400,
            f"prompt: with max_tokens {max_tokens} it takes more than the model's context of "
            f"{context} tokens",
            param="prompt",
            code="context_length_exceeded",
        )
