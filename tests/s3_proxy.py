"""A proxy before an S3 server that does to chosen requests what networks and servers do.

Requests pass with their headers untouched, so signatures hold. One event loop in one thread; bodies are held
whole, which bounds a test's memory by its parts in flight.
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from tests.s3 import free_port

Fault = Literal["slow_down", "reset", "stall", "cut_put", "lose_reply", "cut_reply"]
"""`slow_down`: 503. `reset`: the connection ends before the server hears of it. `stall`: silence, then a reset.
`cut_put`: the server gets half the body, the client a reset. `lose_reply`: applied, and then a reset.
`cut_reply`: half the body of the reply comes."""

SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
HOP = {"connection", "expect", "transfer-encoding", "keep-alive"}


@dataclass
class Rule:
    """Gives the next `times` requests of a method, whose path and query hold a word, a fault."""

    fault: Fault
    method: str
    holding: str = ""
    times: int = 1


@dataclass
class Proxy:
    """A running proxy. Rules are used up in order; `seen` lists method and path of every request."""

    address: str
    upstream: str
    stall_s: float
    rules: list[Rule] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)

    def count(self, method: str, holding: str = "") -> int:
        return sum(m == method and holding in path for m, path in self.seen)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.raw_path))
        fault = self._draw(request)
        body = await request.read()
        if fault == "slow_down":
            return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
        if fault == "stall":
            await asyncio.sleep(self.stall_s)
        if fault in ("reset", "stall"):
            return _hang_up(request)
        headers = {name: v for name, v in request.headers.items() if name.lower() not in HOP}
        if fault == "cut_put":
            await self._send_half(request, headers, body)
            return _hang_up(request)
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                # The path as it came: a second round of quoting would break the signature.
                URL(self.upstream + request.raw_path, encoded=True),
                headers=headers,
                data=body or None,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            ) as reply,
        ):
            data = await reply.read()
            if fault == "lose_reply":
                return _hang_up(request)
            kept = {name: v for name, v in reply.headers.items() if name.lower() not in HOP}
            answer = web.StreamResponse(status=reply.status, headers=kept)
            if request.method != "HEAD":
                answer.content_length = len(data)
            await answer.prepare(request)
            if request.method != "HEAD":
                await answer.write(data[: len(data) // 2] if fault == "cut_reply" else data)
            if fault == "cut_reply":
                return _hang_up(request)
            await answer.write_eof()
            return answer

    def _draw(self, request: web.Request) -> Fault | None:
        for rule in self.rules:
            if rule.times and rule.method == request.method and rule.holding in request.raw_path:
                rule.times -= 1
                return rule.fault
        return None

    async def _send_half(self, request: web.Request, headers: dict[str, str], body: bytes) -> None:
        host, port = self.upstream.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"{request.method} {request.raw_path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        await writer.drain()
        writer.close()
        del reader


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:  # None when the client was the first to leave
        request.transport.abort()
    return web.Response()


@contextlib.contextmanager
def faulty(upstream: str, *, stall_s: float = 3.0) -> Iterator[Proxy]:
    """Runs a proxy before the server at `upstream`, `http://host:port`."""
    port = free_port()
    proxy = Proxy(f"http://127.0.0.1:{port}", upstream.rstrip("/"), stall_s)
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> web.AppRunner:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        return runner

    runners: list[web.AppRunner] = []

    def run() -> None:
        asyncio.set_event_loop(loop)
        runners.append(loop.run_until_complete(serve()))
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(runners[0].cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
