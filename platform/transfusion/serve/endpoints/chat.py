"""`POST /v1/chat/completions`: text and pictures in, text and pictures out, in order.

The model knows documents and no roles: what the messages hold is read in order, and the answer is what comes next.
Pictures come as content parts in their place among the text, and once more in `images`.
"""

from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from transfusion.sample.events import Ended, ImageDrawn, ImagePreview, TextWritten
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Given, Sample
from transfusion.serve.asking import params_of
from transfusion.serve.deadline import AskedTimeout
from transfusion.serve.fetching import PictureFetcher
from transfusion.serve.loop import Events
from transfusion.serve.pictures import check_count, contents_of, from_bytes, to_png
from transfusion.serve.schema import ChatRequest, ContentPart
from transfusion.serve.service import Service, usage
from transfusion.serve.streaming import STREAM, Chunks, head, stream

DEFAULT_TOKENS = 64


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router, limits = APIRouter(), service.config
    fetcher = PictureFetcher(limits.image_hosts, timeout_s=limits.image_fetch_timeout_s)

    @router.post("/v1/chat/completions", response_model=None, responses=STREAM)
    async def chat(body: ChatRequest, timeout_s: AskedTimeout = None) -> dict[str, Any] | Response:
        deadline = service.admit(body.model, count=body.n or 1, asked_s=timeout_s)
        async with deadline.kept():
            urls = [part.image_url.url for part in _parts(body) if part.image_url is not None]
            check_count(len(urls), limits, param="messages")
            contents = await contents_of(
                urls, fetcher, max_bytes=limits.max_body_bytes, param="messages"
            )
            requests = await service.decoder.aside(lambda: _requests(body, contents, service))
        top = head("chatcmpl", service.package.name)
        if body.stream:
            return await stream(_chunks(body, service.events(requests, deadline), service, top))
        samples = await service.ask(requests, deadline)
        return top | {
            "object": "chat.completion",
            "choices": [_choice(index, sample) for index, sample in enumerate(samples)],
            "usage": usage(
                samples[0].prompt_tokens, sum(sample.completion_tokens for sample in samples)
            ),
        }

    return router


def _parts(body: ChatRequest) -> Iterator[ContentPart]:
    """What all messages hold, in order."""
    for message in body.messages:
        if isinstance(message.content, str):
            yield ContentPart(type="text", text=message.content)
        else:
            yield from message.content


def _requests(body: ChatRequest, contents: Sequence[bytes], service: Service) -> list[Request]:
    wanted = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    modalities = body.modalities or ["text"]
    pictures = 1 if body.max_images is None else body.max_images
    each = params_of(
        body,
        service,
        count=body.n or 1,
        previews=body.previews,
        max_tokens=min(DEFAULT_TOKENS, service.config.max_tokens) if wanted is None else wanted,
        max_images=pictures if "image" in modalities else 0,
        modalities=modalities,
    )
    segments = _segments(body, iter(contents), service)
    return service.requests(segments, each, negative_prompt=body.negative_prompt, param="messages")


def _segments(body: ChatRequest, contents: Iterator[bytes], service: Service) -> list[Given]:
    """Texts and pictures of all messages, neighbouring texts behind each other on lines of their own."""
    segments: list[Given] = []
    for part in _parts(body):
        before = segments[-1] if segments else None
        if part.image_url is not None:
            picture = from_bytes(next(contents), service.package.image_size_px, param="messages")
            segments.append(picture)
        elif isinstance(before, str):
            segments[-1] = f"{before}\n{part.text}"
        else:
            segments.append(part.text or "")
    return segments


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
    body: ChatRequest, events: Events, service: Service, top: dict[str, Any]
) -> Chunks:
    """Text as it is written, pictures as they finish; previews under `preview`, which clients may pass over."""

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return top | {"object": "chat.completion.chunk", "choices": [choice]}

    read = written = 0
    begun: set[int] = set()
    async with aclosing(events):
        async for index, event in events:
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
        yield top | {
            "object": "chat.completion.chunk", "choices": [], "usage": usage(read, written),
        }  # fmt: skip
