"""`GET /`: a page to try the model by hand. It asks the other endpoints as any client does, and nobody else."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from transfusion.serve.errors import ApiError
from transfusion.serve.service import Service

TYPES = {"index.html": "text/html", "style.css": "text/css", "script.js": "text/javascript"}

HEADERS = {
    # Nothing from elsewhere is loaded or asked, and no page elsewhere frames this one.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


def routes(service: Service) -> APIRouter:  # noqa: ARG001  the page asks for what it shows
    """The page and its files."""
    router = APIRouter()
    folder = files("transfusion.serve").joinpath("playground")

    def file(name: str) -> Response:
        if name not in TYPES:
            raise ApiError(404, f"GET /playground/{name}: there is no such endpoint")
        content = folder.joinpath(name).read_bytes()
        return Response(content, media_type=TYPES[name], headers=HEADERS)

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @router.get("/playground/{name}", include_in_schema=False)
    async def of_page(name: str) -> Response:
        return file(name)

    return router
