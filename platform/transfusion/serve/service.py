"""What the endpoints share: the model, its limits, and asking it."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transfusion.errors import SpecError
from transfusion.package.load import load_package
from transfusion.sample.params import MAX_SEED, SamplingParams, params_with
from transfusion.sample.rows import Request, check_request
from transfusion.sample.sampler import Sample, Sampler
from transfusion.serve.batcher import Batcher, QueueFullError
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError


class Service:
    """One model behind all endpoints of a replica."""

    def __init__(self, sampler: Sampler, config: EndpointConfig) -> None:
        self.sampler = sampler
        self.config = config
        self.package = sampler.package.config
        self.created = int(time.time())
        self.batcher = Batcher(
            lambda requests, watch: sampler.sample(requests, watch=watch),
            max_batch_size=config.max_batch_size,
            max_queued=config.max_queued_samples,
            threads=config.threads,
        )

    @staticmethod
    def load(folder: Path, config: EndpointConfig) -> "Service":
        """Loads and verifies a package."""
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        package = load_package(
            folder, weights=config.weights, device=device, precision=config.precision
        )
        return Service(Sampler(package), config)

    def params(self, **chosen: Any) -> SamplingParams:
        """The defaults of endpoint and package with what a caller chose.

        Raises:
            ApiError: A value is out of range.
        """
        defaults = self.package.sampling.model_copy(
            update={
                name: value
                for name in ("guidance_scale", "num_inference_steps")
                if (value := getattr(self.config, name)) is not None
            }
        )
        try:
            return params_with(defaults, schedule=self.package.schedule, **chosen)
        except SpecError as error:
            message = "; ".join(fault.lstrip(".: ") for fault in error.faults)
            param = next((name for name in chosen if name in message), None)
            raise ApiError(400, message, param=param) from error

    def request(self, prompt: str, params: SamplingParams) -> Request:
        """A request that is sure to fit.

        Raises:
            ApiError: The prompt is empty, no text, or too long.
        """
        if not prompt.strip():
            raise ApiError(400, "prompt: must not be empty", param="prompt")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ApiError(
                400, "prompt: is not valid Unicode (a lone surrogate)", param="prompt"
            ) from error
        request = self.sampler.request(prompt, params)
        try:
            check_request(request, self.package)
        except ValueError as error:
            raise ApiError(
                400, f"prompt: {error}", param="prompt", code="context_length_exceeded"
            ) from error
        return request

    def check_model(self, name: str | None) -> None:
        """Raises ApiError when a caller names another model than this."""
        if name is not None and name != self.package.name:
            raise ApiError(
                404,
                f"model: there is no model of that name here; there is {self.package.name!r}",
                param="model",
                code="model_not_found",
            )

    async def ask(self, requests: Sequence[Request]) -> list[Sample]:
        """Answers to a caller's requests.

        Raises:
            ApiError: The server is full (429), or takes too long (408).
        """
        limit = self.config.request_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self.batcher.submit(requests)
        except QueueFullError as error:
            raise ApiError(
                429,
                f"the server is busy: {self.batcher.num_queued} samples are waiting; come again later",
                code="server_busy",
                headers={"Retry-After": str(self.config.retry_after_s)},
            ) from error
        except TimeoutError as error:
            raise ApiError(
                408, f"the request was given up after {limit:g} s; ask for less at once"
            ) from error


def seeds_from(seed: int | None, count: int) -> list[int]:
    """One seed a sample: counted up from the caller's, or drawn."""
    first = secrets.randbelow(MAX_SEED) if seed is None else seed
    return [(first + index) % (MAX_SEED + 1) for index in range(count)]
