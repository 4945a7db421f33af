"""Images from latents beside the engine: what waits is decoded together, on a thread of its own.

What comes in is read on another: a word does not wait for pictures to be decoded.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from transfusion.sample.reading import ImagePart
from transfusion.sample.sampler import DECODED_AT_ONCE, Pixels, Processor

T = TypeVar("T")


class Decoder:
    """Decodes for many callers."""

    def __init__(self, processor: Processor, *, threads: int) -> None:
        self._processor = processor
        self._waiting: deque[tuple[ImagePart, asyncio.Future[Pixels]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._thread, self._reader = (
            ThreadPoolExecutor(
                1, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(threads,)
            )
            for name in ("decoder", "reader")
        )

    async def decode(self, part: ImagePart) -> Pixels:
        """The pixels of an image."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Pixels] = loop.create_future()
        self._waiting.append((part, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await future

    async def aside(self, prepare: Callable[[], T]) -> T:
        """What a request is made of (pixels, latents, tokens), worked out while the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, prepare)

    def close(self) -> None:
        """Ends the threads."""
        self._thread.shutdown(wait=False)
        self._reader.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            some = min(len(self._waiting), DECODED_AT_ONCE)
            batch = [self._waiting.popleft() for _ in range(some)]
            batch = [(part, future) for part, future in batch if not future.done()]
            try:
                parts = [part for part, _ in batch]
                pixels = await loop.run_in_executor(self._thread, self._processor.pixels_of, parts)
            except Exception as error:
                # Every caller of the batch gets it.
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), of_one in zip(batch, pixels, strict=True):
                if not future.done():
                    future.set_result(of_one)
