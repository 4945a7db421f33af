"""Server-sent events: chunks of JSON as OpenAI's clients read them."""

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from transfusion.serve.errors import BUG, ApiError, error_body

logger = logging.getLogger("transfusion.serve")

Chunks = AsyncGenerator[Mapping[str, Any], None]

_EVENT = {
    "type": "object",
    "description": "One of the events: `data` is JSON, or [DONE] at the end. `index` says of which sample it is: "
    "within `choices`, or beside `type` where pictures are all that comes.",
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


class _Stream(StreamingResponse):
    """Ends what makes its pieces when nobody takes them any more.

    Left to the collector of garbage each generator would be ended for itself, an inner one before the outer.
    """

    def __init__(self, lines: AsyncGenerator[str, None], chunks: Chunks) -> None:
        super().__init__(
            lines, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._lines, self._chunks = lines, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Both: lines that nobody has begun to take end without a look at their chunks.
        async with aclosing(self._chunks), aclosing(self._lines):
            await super().__call__(scope, receive, send)


async def stream(chunks: Chunks, *, named: bool = False) -> StreamingResponse:
    """An answer that begins when its first chunk is there: what fails before is an error with its status.

    Args:
        named: Each event is named by its `type`, and nothing closes the stream, as with OpenAI's pictures.
    """
    first = await anext(chunks)

    async def lines() -> AsyncGenerator[str, None]:
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
        if not named:
            yield "data: [DONE]\n\n"

    return _Stream(lines(), chunks)


def head(kind: str, model: str) -> dict[str, Any]:
    """What stands at the top of an answer, and of every chunk of it."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _line(chunk: Mapping[str, Any], *, named: bool) -> str:
    name = f"event: {chunk['type']}\n" if named else ""
    return f"{name}data: {json.dumps(chunk)}\n\n"
