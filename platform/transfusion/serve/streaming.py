"""Server-sent events: chunks of JSON as OpenAI's clients read them."""

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse

from transfusion.serve.errors import BUG, ApiError, error_body

logger = logging.getLogger("transfusion.serve")

Chunks = AsyncIterator[Mapping[str, Any]]

_EVENT = {
    "type": "object",
    "description": "One of the events: `data` is JSON, or [DONE] at the end",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}

STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or with `stream` its pieces as server-sent events",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}
"""Of an endpoint that can stream, as its OpenAPI tells it."""


async def stream(chunks: Chunks, *, named: bool = False) -> StreamingResponse | JSONResponse:
    """An answer that begins when its first chunk is there: what fails before is an error with its status.

    Args:
        named: Each event is named by its `type`, and nothing closes the stream, as with OpenAI's pictures.
    """
    first = await anext(chunks)

    async def lines() -> AsyncIterator[str]:
        try:
            yield _line(first, named=named)
            async for chunk in chunks:
                yield _line(chunk, named=named)
        except ApiError as error:
            # The status is sent: the fault travels as an event.
            yield _line(error_body(error), named=False)
        except Exception:
            logger.exception("a stream failed")
            yield _line(error_body(BUG), named=False)
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]
        if not named:
            yield "data: [DONE]\n\n"

    return StreamingResponse(
        lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
    )


def head(kind: str, model: str) -> dict[str, Any]:
    """What stands at the top of an answer, and of every chunk of it."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _line(chunk: Mapping[str, Any], *, named: bool) -> str:
    name = f"event: {chunk['type']}\n" if named else ""
    return f"{name}data: {json.dumps(chunk)}\n\n"
