"""Errors in the shape that OpenAI's clients read: {"error": {message, type, param, code}}."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is at fault, or comes too soon"},
    "5XX": {"model": ErrorAnswer, "description": "The server is at fault"},
}
"""Of every endpoint, as its OpenAPI tells them."""

_PLACES = ("body", "header", "path", "query")


class ApiError(Exception):
    """A request that is answered with an error; the message is for the caller."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})


BUG = ApiError(500, "the server failed on this request; its log says why")
"""What a caller hears of a fault that is ours."""


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a request that is at fault, or that we are."""
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as clients read it."""
    detail = ErrorDetail(
        message=error.message,
        type=_TYPES.get(error.status, "invalid_request_error"),
        param=error.param,
        code=error.code,
    )
    return ErrorAnswer(error=detail).model_dump()


def install(app: FastAPI) -> None:
    """Answers every error of an app in this shape; bugs pass, for the guard to tell of."""

    @app.exception_handler(ApiError)
    async def _ours(_: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(from_faults(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = error.detail
        if error.status_code in (404, 405):
            message = f"{request.method} {request.url.path}: there is no such endpoint"
        return error_response(ApiError(error.status_code, message, headers=error.headers))


def from_faults(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """A 400 for what pydantic found: every fault in the message, the first one's field as `param`."""
    lines, param = [], None
    for fault in faults:
        path = ".".join(str(step) for step in fault.get("loc", ()) if step not in _PLACES)
        message = str(fault.get("msg", "is invalid")).removeprefix("Value error, ")
        if fault.get("type") == "extra_forbidden":
            message = "is not a parameter of this endpoint"
        if fault.get("type") == "json_invalid":
            path, message = "", "the body is not valid JSON"
        lines.append(f"{path}: {message}" if path else message)
        param = param or path.split(".")[0] or None
    return ApiError(400, "; ".join(lines), param=param)
