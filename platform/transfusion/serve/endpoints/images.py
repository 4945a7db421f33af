"""`POST /v1/images/generations` and `POST /v1/images/edits`: pictures of a prompt, or of both."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, UploadFile
from fastapi.responses import Response
from pydantic import ValidationError

from transfusion.sample.events import ImageDrawn, ImagePreview
from transfusion.sample.params import SamplingParams
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Given
from transfusion.serve.errors import ApiError, from_faults
from transfusion.serve.pictures import from_bytes, to_png
from transfusion.serve.schema import ImageRequest
from transfusion.serve.service import Service, seeds_from
from transfusion.serve.streaming import Chunks, stream

IMAGE_GUIDANCE = 1.5
"""Of an edit, unless told otherwise: InstructPix2Pix's (arXiv:2211.09800, section 4)."""


def routes(service: Service) -> APIRouter:
    """The endpoints' routes."""
    router = APIRouter()

    @router.post("/v1/images/generations", response_model=None)
    async def generate(body: ImageRequest) -> dict[str, Any] | Response:
        return await _draw(service, body, [body.prompt], "image_generation")

    @router.post("/v1/images/edits", response_model=None)
    async def edit(
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
        negative_prompt: Annotated[str | None, Form()] = None,
    ) -> dict[str, Any] | Response:
        given = {
            "prompt": prompt, "model": model, "n": n, "size": size, "seed": seed,
            "response_format": response_format, "output_format": output_format,
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
        }  # fmt: skip
        try:
            body = ImageRequest.model_validate({k: v for k, v in given.items() if v is not None})
        except ValidationError as error:
            raise from_faults([dict(fault) for fault in error.errors()]) from error
        uploads = [*(image or ()), *(images or ())]
        if not uploads:
            raise ApiError(400, "image: must be at least one picture", param="image")
        size_px = service.package.image_size_px
        segments: list[Given] = [
            from_bytes(await upload.read(), size_px, param="image") for upload in uploads
        ]
        # A model of codes draws an edit by the guidance of all that is before it.
        scale = None
        if not service.package.num_codes:
            scale = IMAGE_GUIDANCE if image_guidance_scale is None else image_guidance_scale
        return await _draw(service, body, [*segments, prompt], "image_edit", image_scale=scale)

    return router


async def _draw(
    service: Service,
    body: ImageRequest,
    prompt: Sequence[Given],
    kind: str,
    *,
    image_scale: float | None = None,
) -> dict[str, Any] | Response:
    service.check_model(body.model)
    _check(body, service)
    seeds = seeds_from(body.seed, body.n or 1)
    steps = body.num_inference_steps or service.params().num_inference_steps
    previews = body.partial_images or 0
    each: list[SamplingParams] = [
        service.params(
            num_inference_steps=body.num_inference_steps,
            guidance_scale=body.guidance_scale,
            guidance_interval=body.guidance_interval,
            image_guidance_scale=image_scale,
            solver=body.solver,
            seed=seed,
            modalities=["image"],
            preview_every=-(-steps // (previews + 1)) if body.stream and previews else None,
        )
        for seed in seeds
    ]
    requests = service.requests(prompt, each, negative_prompt=body.negative_prompt)
    size = service.package.image_size_px
    about = {"created": int(time.time()), "output_format": "png", "size": f"{size}x{size}"}
    if body.stream:
        return await stream(_chunks(service, requests, kind, about), named=True)
    samples = await service.ask(requests)
    data = [
        {"b64_json": to_png(sample.images[0]), "url": None, "revised_prompt": None, "seed": seed}
        for sample, seed in zip(samples, seeds, strict=True)
    ]
    usage = {"input_tokens": samples[0].prompt_tokens, "output_tokens": 0}
    return about | {"data": data, "usage": usage | {"total_tokens": samples[0].prompt_tokens}}


async def _chunks(
    service: Service, requests: Sequence[Request], kind: str, about: dict[str, Any]
) -> Chunks:
    """`partial_image` events on the way, `completed` at the end of each."""
    count = 0
    async for _, event in service.events(requests):
        if isinstance(event, ImagePreview) and event.step < event.num_steps:
            picture = to_png(await service.pixels(event))
            yield about | {
                "type": f"{kind}.partial_image", "b64_json": picture, "partial_image_index": count,
            }  # fmt: skip
            count += 1
        elif isinstance(event, ImageDrawn):
            picture = to_png(await service.pixels(event))
            yield about | {"type": f"{kind}.completed", "b64_json": picture}


def _check(body: ImageRequest, service: Service) -> None:
    size, limits = service.package.image_size_px, service.config
    if body.size not in (None, "auto", f"{size}x{size}"):
        raise ApiError(
            400, f"size: must be '{size}x{size}', the model's, got {body.size!r}", param="size"
        )
    if (body.n or 1) > limits.max_images:
        raise ApiError(400, f"n: must be at most {limits.max_images}, got {body.n}", param="n")
    steps = body.num_inference_steps or 0
    if steps > limits.max_inference_steps:
        raise ApiError(
            400,
            f"num_inference_steps: must be at most {limits.max_inference_steps}, got {steps}",
            param="num_inference_steps",
        )
