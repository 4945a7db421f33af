"""`POST /v1/images/generations`."""

import base64
import io
import time
from typing import Any

import numpy as np
from fastapi import APIRouter

from transfusion.serve.errors import ApiError
from transfusion.serve.schema import ImageRequest
from transfusion.serve.service import Service, seeds_from


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()

    @router.post("/v1/images/generations")
    async def generate(body: ImageRequest) -> dict[str, Any]:
        service.check_model(body.model)
        _check(body, service)
        seeds = seeds_from(body.seed, body.n or 1)
        requests = [
            service.request(
                body.prompt,
                service.params(
                    num_inference_steps=body.num_inference_steps,
                    guidance_scale=body.guidance_scale,
                    solver=body.solver,
                    seed=seed,
                    modalities=["image"],
                ),
            )
            for seed in seeds
        ]
        samples = await service.ask(requests)
        data = [
            {"b64_json": _png(sample.images[0]), "url": None, "revised_prompt": None, "seed": seed}
            for sample, seed in zip(samples, seeds, strict=True)
        ]
        size = service.package.image_size_px
        return {
            "created": int(time.time()),
            "data": data,
            "output_format": "png",
            "size": f"{size}x{size}",
        }

    return router


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


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
