"""`POST /v1/images/generations` and `POST /v1/images/edits`: pictures of a prompt, or of both."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import ValidationError

from transfusion.sample.events import ImageDrawn, ImagePreview
from transfusion.sample.rows import Request as SampleOf
from transfusion.serve.asking import params_of
from transfusion.serve.deadline import AskedTimeout
from transfusion.serve.errors import ApiError, from_faults
from transfusion.serve.loop import Events
from transfusion.serve.pictures import check_count, from_bytes, to_png
from transfusion.serve.schema import ImageRequest
from transfusion.serve.service import Service
from transfusion.serve.streaming import STREAM, Chunks, stream

IMAGE_GUIDANCE = 1.5
"""Of an edit, unless told otherwise: InstructPix2Pix's (arXiv:2211.09800, section 4)."""


_FORM_ONLY = ("image", "image[]", "image_guidance_scale", "guidance_interval[]")
_INTERVAL = "Two numbers: guidance where t / T is within. With a comma between, or the field twice."


def routes(service: Service) -> APIRouter:
    """The endpoints' routes."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=None, responses=STREAM)
    async def generate(
        body: ImageRequest, timeout_s: AskedTimeout = None
    ) -> dict[str, Any] | Response:
        return await _draw(service, body, "image_generation", timeout_s)

    @router.post("/v1/images/edits", response_model=None, responses=STREAM)
    async def edit(
        form: Request,
        prompt: Annotated[str, Form()],
        image: Annotated[list[UploadFile] | None, File()] = None,
        images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
        model: Annotated[str | None, Form()] = None,
        n: Annotated[int | None, Form()] = None,
        size: Annotated[str | None, Form()] = None,
        seed: Annotated[int | None, Form()] = None,
        response_format: Annotated[str | None, Form()] = None,
        output_format: Annotated[str | None, Form()] = None,
        num_inference_steps: Annotated[int | None, Form()] = None,
        guidance_scale: Annotated[float | None, Form()] = None,
        image_guidance_scale: Annotated[float | None, Form()] = None,
        guidance_interval: Annotated[list[str] | None, Form(description=_INTERVAL)] = None,
        interval: Annotated[list[str] | None, Form(alias="guidance_interval[]")] = None,
        solver: Annotated[str | None, Form()] = None,
        negative_prompt: Annotated[str | None, Form()] = None,
        stream: Annotated[bool | None, Form()] = None,
        partial_images: Annotated[int | None, Form()] = None,
        timeout_s: AskedTimeout = None,
    ) -> dict[str, Any] | Response:
        given = {
            "prompt": prompt, "model": model, "n": n, "size": size, "seed": seed,
            "response_format": response_format, "output_format": output_format,
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt, "solver": solver, "stream": stream,
            "partial_images": partial_images,
            "guidance_interval": _numbers(guidance_interval or interval, "guidance_interval"),
        }  # fmt: skip
        try:
            body = ImageRequest.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            raise from_faults([dict(fault) for fault in error.errors()]) from error
        uploads = [*(image or ()), *(images or ())]
        if not uploads:
            raise ApiError(400, "image: must be at least one picture", param="image")
        check_count(len(uploads), service.config, param="image")
        await _check_names(form, {*given, *_FORM_ONLY})
        # A model of codes draws an edit by the guidance of all that is before it.
        scale = None
        if not service.package.num_codes:
            scale = IMAGE_GUIDANCE if image_guidance_scale is None else image_guidance_scale
        contents = [await upload.read() for upload in uploads]
        return await _draw(
            service, body, "image_edit", timeout_s, contents=contents, image_guidance_scale=scale
        )

    return router


async def _draw(
    service: Service,
    body: ImageRequest,
    kind: str,
    timeout_s: float | None,
    *,
    contents: Sequence[bytes] = (),
    image_guidance_scale: float | None = None,
) -> dict[str, Any] | Response:
    deadline = service.admit(body.model, count=body.n or 1, asked_s=timeout_s)
    _check_size(body, service)

    def prepare() -> list[SampleOf]:
        each = params_of(
            body,
            service,
            count=body.n or 1,
            previews=body.partial_images,
            image_guidance_scale=image_guidance_scale,
            modalities=["image"],
        )
        size_px = service.package.image_size_px
        pictures = [from_bytes(content, size_px, param="image") for content in contents]
        return service.requests(
            [*pictures, body.prompt], each, negative_prompt=body.negative_prompt
        )

    async with deadline.kept():
        requests = await service.decoder.aside(prepare)
    size = service.package.image_size_px
    about = {"created": int(time.time()), "output_format": "png", "size": f"{size}x{size}"}
    if body.stream:
        return await stream(
            _chunks(service.events(requests, deadline), service, kind, about), named=True
        )
    samples = await service.ask(requests, deadline)
    data = [
        {
            "b64_json": to_png(sample.images[0]),
            "url": None,
            "revised_prompt": None,
            "seed": request.params.seed,
        }
        for sample, request in zip(samples, requests, strict=True)
    ]
    usage = {"input_tokens": samples[0].prompt_tokens, "output_tokens": 0}
    return about | {"data": data, "usage": usage | {"total_tokens": samples[0].prompt_tokens}}


async def _chunks(events: Events, service: Service, kind: str, about: dict[str, Any]) -> Chunks:
    """`partial_image` events on the way, `completed` at the end of each; `index` says of which picture."""
    counts: Counter[int] = Counter()
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, ImagePreview) and event.step < event.num_steps:
                picture = to_png(await service.pixels(event))
                yield about | {
                    "type": f"{kind}.partial_image", "b64_json": picture, "index": index,
                    "partial_image_index": counts[index],
                }  # fmt: skip
                counts[index] += 1
            elif isinstance(event, ImageDrawn):
                picture = to_png(await service.pixels(event))
                yield about | {"type": f"{kind}.completed", "b64_json": picture, "index": index}


def _numbers(texts: Sequence[str] | None, param: str) -> list[float] | None:
    """Numbers of a form, which knows neither: behind commas, or a field each."""
    if texts is None:
        return None
    try:
        return [float(one) for one in ",".join(texts).split(",")]
    except ValueError as error:
        raise ApiError(400, f"{param}: must be numbers, like 0.1,0.9", param=param) from error


async def _check_names(form: Request, known: set[str]) -> None:
    """None that is sent is silently ignored, as in JSON."""
    unknown = sorted(set(await form.form()) - known - {"user"})
    if unknown:
        raise ApiError(400, f"{unknown[0]}: is not a parameter of this endpoint", param=unknown[0])


def _check_size(body: ImageRequest, service: Service) -> None:
    size = service.package.image_size_px
    if body.size not in (None, "auto", f"{size}x{size}"):
        raise ApiError(
            400, f"size: must be '{size}x{size}', the model's, got {body.size!r}", param="size"
        )
