"""Callers of an endpoint, in a process of their own: what they ask, how many of them, and what they see."""

import asyncio
import concurrent.futures
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TOKENS = 32
"""Of a text."""


def bodies() -> Iterator[tuple[str, dict[str, Any]]]:
    """A picture, a text, a picture, and so on."""
    for seed in itertools.count():
        yield "/v1/images/generations", {"prompt": "a red circle", "seed": seed}
        yield "/v1/completions", {"prompt": "a red circle", "seed": seed, "max_tokens": TOKENS}


@dataclass
class Seen:
    """By one load."""

    seconds: float = 0.0
    codes: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    """Of what was answered."""
    without_retry_after: int = 0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.codes[200] / self.seconds

    def quantile(self, share: float) -> float:
        """Of the latencies."""
        return sorted(self.latencies_s)[
            min(int(share * len(self.latencies_s)), len(self.latencies_s) - 1)
        ]


class _Asking:
    """Asks, and counts what is answered between two moments."""

    def __init__(self, client: aiohttp.ClientSession, seconds: float) -> None:
        self._client = client
        self._bodies = bodies()
        began = time.perf_counter()
        self._warm_until, self.until = began + min(2.0, seconds / 5), began + seconds
        self.seen = Seen(seconds=self.until - self._warm_until)

    async def once(self) -> int:
        """The status of the next answer."""
        path, body = next(self._bodies)
        asked = time.perf_counter()
        async with self._client.post(path, json=body) as got:
            await got.read()
        now = time.perf_counter()
        if self._warm_until <= now <= self.until:
            self.seen.codes[got.status] += 1
            if got.ok:
                self.seen.latencies_s.append(now - asked)
            elif got.status == 429:
                self.seen.without_retry_after += "retry-after" not in got.headers
        return got.status


def _session(address: str) -> aiohttp.ClientSession:
    """Costs the cores that callers share with the server a seventh of what httpx's client does."""
    return aiohttp.ClientSession(
        address,
        timeout=aiohttp.ClientTimeout(total=300),
        connector=aiohttp.TCPConnector(limit=0),
    )


async def _callers(address: str, *, callers: int, seconds: float) -> Seen:
    async with _session(address) as client:
        asking = _Asking(client, seconds)

        async def call() -> None:
            while time.perf_counter() < asking.until:
                if await asking.once() == 429:
                    await asyncio.sleep(1)

        await asyncio.gather(*(call() for _ in range(callers)))
    return asking.seen


async def _arrivals(address: str, *, rate: float, seconds: float) -> Seen:
    async with _session(address) as client:
        asking = _Asking(client, seconds)
        async with asyncio.TaskGroup() as group:
            began = time.perf_counter()
            for number in range(int(rate * seconds)):
                await asyncio.sleep(began + number / rate - time.perf_counter())
                group.create_task(asking.once())
    return asking.seen


def load(address: str, *, callers: int, seconds: float) -> Seen:
    """A number of callers who ask again as soon as they are answered, or after a second when refused."""
    return asyncio.run(_callers(address, callers=callers, seconds=seconds))


def offer(address: str, *, rate: float, seconds: float) -> Seen:
    """So many requests a second, whatever becomes of those before."""
    return asyncio.run(_arrivals(address, rate=rate, seconds=seconds))


class Apart:
    """A process that other work is done in."""

    def __enter__(self) -> "Apart":
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def do(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Waits for it."""
        return self._pool.submit(function, *arguments, **named).result()

    def begin(self, function: Any, *arguments: Any, **named: Any) -> concurrent.futures.Future[Any]:
        """Does not."""
        return self._pool.submit(function, *arguments, **named)
