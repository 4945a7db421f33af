"""`GET /health`, `GET /metrics` and `GET /v1/models`."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from transfusion.serve.errors import ApiError
from transfusion.serve.service import Service


def routes(service: Service) -> APIRouter:
    """The endpoint's routes."""
    router = APIRouter()
    package = service.package

    @router.get("/health")
    async def health() -> dict[str, Any]:
        try:
            service.loop.check(step_timeout_s=service.config.step_timeout_s)
        except RuntimeError as error:
            raise ApiError(503, str(error), code="engine_unwell") from error
        told = {"status": "ok", "model": package.name, "queued": service.loop.num_queued}
        return told | ({"refused": True} if service.is_new_model_refused else {})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model()]}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return _model()

    def _model() -> dict[str, Any]:
        return {
            "id": package.name,
            "object": "model",
            "created": service.created,
            "owned_by": "transfusion",
            "image_size": f"{package.image_size_px}x{package.image_size_px}",
            "max_model_len": package.sequence_length,
            "digest": service.processor.package.digest,
        }

    return router
