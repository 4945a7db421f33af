"""The FastAPI application over a service. Knows nothing of Ray."""

from collections.abc import Sequence

from fastapi import FastAPI

from transfusion.serve import errors
from transfusion.serve.endpoints import chat, completions, images, playground, status, tokens
from transfusion.serve.guards import Guard
from transfusion.serve.service import Service

ENDPOINTS = (
    chat.routes,
    images.routes,
    completions.routes,
    playground.routes,
    status.routes,
    tokens.routes,
)


def make_app(
    service: Service, *, digests: Sequence[str] = (), tells_request_id: bool = True
) -> FastAPI:
    """All endpoints behind the guard.

    Args:
        digests: sha256 of the keys that may ask; none for everybody.
        tells_request_id: Whether answers have an id; Ray Serve's proxy adds one itself.
    """
    app = FastAPI(title="Transfusion", docs_url=None, redoc_url=None)
    errors.install(app)
    for routes in ENDPOINTS:
        app.include_router(routes(service), responses=errors.ERRORS)
    app.add_middleware(
        Guard,
        max_body_bytes=service.config.max_body_bytes,
        body_timeout_s=service.config.body_timeout_s,
        digests=tuple(digests),
        headers={
            "X-Model-Id": service.package.name,
            "X-Model-Digest": service.processor.package.digest,
            "X-Model-Lineage": service.package.trained_by or "unknown",
        },
        tells_request_id=tells_request_id,
    )
    return app
