"""What every request passes before it is parsed: its size, the time it takes to arrive, its key.

And what every answer passes: headers that say who made it, also where a bug did, and a caller who reads.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transfusion.errors import SpecError
from transfusion.serve.errors import BUG, ApiError, error_response

logger = logging.getLogger("transfusion.serve")

KEYS = "TRANSFUSION_API_KEYS"
"""Keys of those who may ask, separated by commas; without it everybody may who reaches the port."""

OPEN_PATHS = frozenset(
    {"/health", "/", "/playground/index.html", "/playground/style.css", "/playground/script.js"}
)
"""What tells nothing that a key protects: whether the server is there, and the page, which asks with a key."""

Refusal = Callable[[], ApiError | None]
"""Why one more request for samples cannot be taken now; None when it can."""


def key_digests() -> tuple[str, ...]:
    """sha256 of each key in the environment: keys themselves go into no argument and no log.

    Raises:
        SpecError: The variable is set and holds no key, or one with blanks in it; a secret that came
            empty must not open the server.
    """
    given = os.environ.get(KEYS)
    if given is None:
        return ()
    keys = [key for part in given.split(",") if (key := part.strip())]
    if not keys or any(len(key.split()) > 1 for key in keys):
        raise SpecError(
            f"{KEYS}: must hold at least one key, keys separated by commas and none with blanks in it, got "
            f"{'one with blanks' if keys else 'none'}; set the keys, or unset it to let everybody "
            "ask who reaches the port"
        )
    return tuple(hashlib.sha256(key.encode()).hexdigest() for key in keys)


class Guard:
    """ASGI middleware that answers what is too long, too slow, without a key, or comes when no place is left."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_timeout_s: float,
        reader_timeout_s: float,
        digests: Sequence[str] = (),
        headers: Mapping[str, str] = MappingProxyType({}),
        sampling_paths: Collection[str] = (),
        refusal: Refusal | None = None,
        tells_request_id: bool = True,
    ) -> None:
        """Wraps an app.

        Args:
            headers: Of every answer.
            sampling_paths: Where samples are asked for: what `refusal` says is answered there before anything is
                read, so that a crowd that must be turned away costs those who are served little.
            tells_request_id: Whether answers have an id; where a proxy adds its own there would be two.
        """
        self.app = app
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self.sampling_paths, self.refusal = frozenset(sampling_paths), refusal
        self.tells_request_id = tells_request_id
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s, self.reader_timeout_s = body_timeout_s, reader_timeout_s
        self.digests = tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self._told(), self.reader_timeout_s)
        try:
            await self._hand_on(scope, receive, answer)
        except Exception:
            if not answer.is_unread:
                raise
            # The server closes what has not ended. Nobody's bug: the caller hung up, or is out to hold places.
            logger.warning(
                "%s %s: its caller has not read for %g s and is given up",
                scope["method"],
                scope["path"].encode(),
                self.reader_timeout_s,
            )

    async def _hand_on(self, scope: Scope, receive: Receive, send: "_Answer") -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if scope["path"] not in OPEN_PATHS:
                self._check_key(headers.get(b"authorization", b""))
            self._check_length(headers.get(b"content-length", b"0"))
            self._check_room(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        body = _Body(receive, self.max_body_bytes, self.body_timeout_s)

        async def sending(message: Message) -> None:
            # The framework turns what `receive` raises into a 400 of its own: ours goes out in its place.
            if body.fault is None:
                await send(message)

        try:
            await self.app(scope, body.receive, sending)
        except Exception:
            # What has begun can only break off; the message is no caller's.
            if send.has_begun:
                raise
            if body.fault is None:
                logger.exception("%s %s failed", scope["method"], scope["path"].encode())
            await error_response(body.fault or BUG)(scope, receive, send)
            return
        if body.fault is not None and not send.has_begun:
            await error_response(body.fault)(scope, receive, send)

    def _told(self) -> list[tuple[bytes, bytes]]:
        if not self.tells_request_id:
            return self.headers
        return [*self.headers, (b"x-request-id", uuid.uuid4().hex.encode())]

    def _check_key(self, authorization: bytes) -> None:
        if not self.digests:
            return
        scheme, _, key = authorization.partition(b" ")
        given = hashlib.sha256(key.strip()).hexdigest()
        # Every digest is compared, each in constant time.
        known = [hmac.compare_digest(given, digest) for digest in self.digests]
        if scheme.lower() != b"bearer" or not any(known):
            raise ApiError(
                401,
                "this endpoint needs a key: send the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_length(self, declared: bytes) -> None:
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            raise _too_long(self.max_body_bytes)

    def _check_room(self, scope: Scope) -> None:
        if self.refusal is None or scope["path"] not in self.sampling_paths:
            return
        refused = self.refusal() if scope["method"] == "POST" else None
        if refused is not None:
            raise refused


class _Answer:
    """Sends an answer with the headers of every one, a piece of it within a time."""

    def __init__(
        self, send: Send, headers: Sequence[tuple[bytes, bytes]], timeout_s: float
    ) -> None:
        self._send, self._headers, self._timeout_s = send, headers, timeout_s
        self.has_begun = self.is_unread = False

    async def __call__(self, message: Message) -> None:
        """Sends a piece; raises TimeoutError when it is not read in time."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message["headers"] = [*message["headers"], *self._headers]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError:
            self.is_unread = True
            raise


class _Body:
    """A request's body as it arrives; what is wrong with it is kept in `fault`."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._seen = 0
        self._complete = False
        self.fault: ApiError | None = None

    async def receive(self) -> Message:
        """The next message; raises ApiError when the body is too long or too slow."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._deadline - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError as error:
            self.fault = ApiError(408, f"the request did not arrive within {self._timeout_s:g} s")
            raise self.fault from error
        self._seen += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._seen > self._max_bytes:
            self.fault = _too_long(self._max_bytes)
            raise self.fault
        return message


def _too_long(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the request is too long: it must be at most {max_bytes} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )
