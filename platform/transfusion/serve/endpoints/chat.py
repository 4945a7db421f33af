"""`POST /v1/chat/completions`: text and pictures in, text and pictures out, in order.

The model knows documents and no roles: what the messages hold is read in order, and the answer is what comes next.
Pictures come as content parts in their place among the text, and once more in `images`.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from transfusion.sample.events import Ended, ImageDrawn, ImagePreview, TextWritten
from transfusion.sample.params import SamplingParams
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Given, Sample
from transfusion.serve.errors import ApiError
from transfusion.serve.pictures import from_url, to_png
from transfusion.serve.schema import ChatRequest
from transfusion.serve.service import Service, check_unicode, seeds_from, usage
from transfusion.serve.streaming import Chunks, stream

DEFAULT_TOKENS = 64


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()

    @router.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest) -> dict[str, Any] | Response:
        service.check_model(body.model)
        requests = _requests(body, service)
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.package.name,
        }
        if body.stream:
            return await stream(_chunks(body, service, requests, head))
        samples = await service.ask(requests)
        return head | {
            "object": "chat.completion",
            "choices": [_choice(index, sample) for index, sample in enumerate(samples)],
            "usage": usage(
                samples[0].prompt_tokens, sum(sample.completion_tokens for sample in samples)
            ),
        }

    return router


def _requests(body: ChatRequest, service: Service) -> list[Request]:
    segments = _segments(body, service)
    wanted = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    max_tokens = min(DEFAULT_TOKENS, service.config.max_tokens) if wanted is None else wanted
    _check(body, max_tokens, service)
    modalities = body.modalities or ["text"]
    each: list[SamplingParams] = [
        service.params(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=max_tokens,
            max_images=_max_images(body),
            stop=[body.stop] if isinstance(body.stop, str) else body.stop,
            num_inference_steps=body.num_inference_steps,
            guidance_scale=body.guidance_scale,
            image_guidance_scale=body.image_guidance_scale,
            solver=body.solver,
            preview_every=_preview_every(body, service),
            seed=seed,
            modalities=modalities,
        )
        for seed in seeds_from(body.seed, body.n or 1)
    ]
    return service.requests(segments, each, negative_prompt=body.negative_prompt, param="messages")


def _max_images(body: ChatRequest) -> int:
    if "image" not in (body.modalities or ()):
        return 0
    return 1 if body.max_images is None else body.max_images


def _preview_every(body: ChatRequest, service: Service) -> int | None:
    if not body.stream or not body.previews:
        return None
    steps = body.num_inference_steps or service.params().num_inference_steps
    return -(-steps // (body.previews + 1))


def _segments(body: ChatRequest, service: Service) -> list[Given]:
    """Texts and pictures of all messages, neighbouring texts behind each other on lines of their own."""
    segments: list[Given] = []
    size = service.package.image_size_px
    for message in body.messages:
        parts: list[Given] = []
        if isinstance(message.content, str):
            parts.append(message.content)
        else:
            for part in message.content:
                if part.image_url is not None:
                    parts.append(from_url(part.image_url.url, size, param="messages"))
                else:
                    parts.append(part.text or "")
        texts = [part for part in parts if isinstance(part, str)]
        check_unicode(texts, "messages")
        for segment in parts:
            before = segments[-1] if segments else None
            if isinstance(segment, str) and isinstance(before, str):
                segments[-1] = f"{before}\n{segment}"
            else:
                segments.append(segment)
    return segments


def _check(body: ChatRequest, max_tokens: int, service: Service) -> None:
    limits = service.config
    for name, value, most in (
        ("n", body.n or 1, limits.max_images),
        ("max_images", body.max_images or 0, limits.max_images),
        ("max_tokens", max_tokens, limits.max_tokens),
        ("num_inference_steps", body.num_inference_steps or 0, limits.max_inference_steps),
    ):
        if value > most:
            raise ApiError(400, f"{name}: must be at most {most}, got {value}", param=name)


def _choice(index: int, sample: Sample) -> dict[str, Any]:
    pictures = [_part(to_png(image)) for image in sample.images]
    content: Any = sample.text
    if pictures:
        drawn = iter(pictures)
        content = [
            {"type": "text", "text": segment} if isinstance(segment, str) else next(drawn)
            for segment in sample.segments
        ]
    message = {"role": "assistant", "content": content, "refusal": None}
    if pictures:
        message["images"] = pictures
    return {
        "index": index,
        "message": message,
        "finish_reason": sample.finish_reason,
        "logprobs": None,
    }


def _part(picture: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}


async def _chunks(
    body: ChatRequest, service: Service, requests: Sequence[Request], head: dict[str, Any]
) -> Chunks:
    """Text as it is written, pictures as they finish; previews under `preview`, which clients may pass over."""

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return head | {"object": "chat.completion.chunk", "choices": [choice]}

    read = written = 0
    begun: set[int] = set()
    async for index, event in service.events(requests):
        role = {} if index in begun else {"role": "assistant"}
        begun.add(index)
        if isinstance(event, TextWritten):
            yield chunk(index, role | {"content": event.text})
        elif isinstance(event, ImagePreview) and event.step < event.num_steps:
            preview = {
                "index": event.index, "step": event.step, "num_steps": event.num_steps,
                **_part(to_png(await service.pixels(event))),
            }  # fmt: skip
            yield chunk(index, role | {"preview": preview})
        elif isinstance(event, ImageDrawn):
            part = _part(to_png(await service.pixels(event)))
            yield chunk(index, role | {"images": [part | {"index": event.index}]})
        elif isinstance(event, Ended):
            read = event.result.prompt_length
            written += event.result.num_tokens
            yield chunk(index, role, event.result.finish_reason)
    if body.stream_options and body.stream_options.include_usage:
        yield head | {
            "object": "chat.completion.chunk", "choices": [], "usage": usage(read, written),
        }  # fmt: skip
