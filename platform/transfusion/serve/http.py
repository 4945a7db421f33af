"""The FastAPI application over a service. Knows nothing of Ray."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.routing import Route

from transfusion.serve import errors
from transfusion.serve.endpoints import chat, completions, images, playground, status, tokens
from transfusion.serve.guards import Guard
from transfusion.serve.service import Service

SAMPLING = (chat.routes, images.routes, completions.routes)
"""What takes places in the engine."""

ENDPOINTS = (*SAMPLING, playground.routes, status.routes, tokens.routes)


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
    routers = {routes: routes(service) for routes in ENDPOINTS}
    for router in routers.values():
        app.include_router(router, responses=errors.ERRORS)
    app.add_middleware(
        Guard,
        max_body_bytes=service.config.max_body_bytes,
        body_timeout_s=service.config.body_timeout_s,
        reader_timeout_s=service.config.reader_timeout_s,
        digests=tuple(digests),
        headers={
            "X-Model-Id": service.package.name,
            "X-Model-Digest": service.processor.package.digest,
            "X-Model-Lineage": service.package.trained_by or "unknown",
        },
        sampling_paths={
            route.path
            for of in SAMPLING
            for route in routers[of].routes
            if isinstance(route, Route)
        },
        refusal=service.refusal,
        tells_request_id=tells_request_id,
    )
    return app
