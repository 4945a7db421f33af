"""`POST /v1/completions`."""

import time
import uuid
from typing import Any

from fastapi import APIRouter

from transfusion.sample.sampler import Sample
from transfusion.serve.errors import ApiError
from transfusion.serve.schema import CompletionRequest
from transfusion.serve.service import Service, seeds_from

DEFAULT_TOKENS = 16
"""As OpenAI's: a caller who wants more says so."""


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest) -> dict[str, Any]:
        service.check_model(body.model)
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        each = [prompt for prompt in prompts for _ in range(body.n or 1)]
        max_tokens = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        _check(prompts, max_tokens, service)
        requests = [
            service.request(
                prompt,
                service.params(
                    temperature=body.temperature,
                    top_p=body.top_p,
                    top_k=body.top_k,
                    max_tokens=max_tokens,
                    max_images=0,
                    seed=seed,
                    modalities=["text"],
                ),
            )
            for prompt, seed in zip(each, seeds_from(body.seed, len(each)), strict=True)
        ]
        samples = await service.ask(requests)
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        choices = [
            _choice(index, prompt if body.echo else "", sample, stops)
            for index, (prompt, sample) in enumerate(zip(each, samples, strict=True))
        ]
        read = sum(sample.prompt_tokens for sample in samples[:: body.n or 1])
        written = sum(sample.completion_tokens for sample in samples)
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.package.name,
            "choices": choices,
            "usage": {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            },
        }

    return router


def _check(prompts: list[str], max_tokens: int, service: Service) -> None:
    if max_tokens > service.config.max_tokens:
        raise ApiError(
            400,
            f"max_tokens: must be at most {service.config.max_tokens}, got {max_tokens}",
            param="max_tokens",
        )
    context = service.package.sequence_length
    for prompt in prompts:
        # Bytes bound tokens from above only with byte fallback; the exact count is worth its time.
        if (
            len(prompt) <= 32 * context
            and service.sampler.num_positions(prompt) + max_tokens <= context
        ):
            continue
        raise ApiError(
            400,
            f"prompt: with max_tokens {max_tokens} it takes more than the model's context of "
            f"{context} tokens",
            param="prompt",
            code="context_length_exceeded",
        )


def _choice(index: int, before: str, sample: Sample, stops: list[str]) -> dict[str, Any]:
    text, reason = sample.text, sample.finish_reason
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    if ends:
        text, reason = text[: min(ends)], "stop"
    return {"index": index, "text": before + text, "finish_reason": reason, "logprobs": None}
