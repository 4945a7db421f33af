"""Until when a request is answered: the endpoint's limit, or sooner where the caller asks for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Header

from transfusion.serve.errors import ApiError

# Serve's own `x-request-timeout-seconds` is answered by its proxy, in plain text.
AskedTimeout = Annotated[
    float | None,
    Header(
        alias="x-timeout-seconds",
        gt=0,
        allow_inf_nan=False,
        description="Gives the request up sooner than the endpoint would; never later.",
    ),
]


class Deadline:
    """Counts from when it is made."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._at = asyncio.get_running_loop().time() + limit_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Cancels what is awaited inside when time is up.

        Raises:
            ApiError: It took too long (408).
        """
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError as error:
            raise ApiError(
                408, f"the request was given up after {self.limit_s:g} s; ask for less at once"
            ) from error
