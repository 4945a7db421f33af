"""The `endpoint:` block of a job file: how the model is offered. Imports nothing heavy."""

import re
from typing import Literal

from pydantic import Field, field_validator

from transfusion.config import Config

_HOST = re.compile(
    r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?(:[1-9][0-9]{0,4})?"
)


class EndpointConfig(Config):
    """An endpoint over one model package. None of it is identity: nothing is made."""

    model: str = "model"
    """The name of the job's stage that makes the model package."""
    host: str = "127.0.0.1"
    """Loopback unless told otherwise: the endpoint's own keys are its only guard."""
    port: int = Field(8000, ge=1, le=65535)
    weights: Literal["ema", "raw"] = "ema"
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where the replica was given one."""
    threads: int = Field(1, ge=1)
    """CPU threads of a replica."""
    compile: bool = False
    """Compiles what treats rows alone, on CUDA as graphs. A replica is ready once each of about a hundred sizes
    of a step is compiled: minutes at its first start on a machine, less where torch keeps its cache."""

    guidance_scale: float | None = Field(None, ge=0, le=20)
    """Where a request names none; the package's default when left out."""
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    """Where a request names none; the package's default when left out."""

    max_body_bytes: int = Field(10_000_000, ge=1000)
    """A longer request is refused before it is read whole; pictures come in requests."""
    max_images: int = Field(10, ge=1, le=10)
    """Of a request."""
    max_input_images: int = Field(10, ge=0)
    """Of a request, among its messages or uploads."""
    image_hosts: tuple[str, ...] = Field((), strict=False)
    """Hosts from whose `http` and `https` addresses pictures in messages are fetched (`images.example.com`, with a
    port where it is not the scheme's), each spelled out and public. None unless told: nothing is fetched then."""
    image_fetch_timeout_s: float = Field(10.0, gt=0)
    """A picture must have arrived from its host in this time."""
    max_inference_steps: int = Field(250, ge=1, le=1000)
    max_tokens: int = Field(1024, ge=1)
    """Of a completion; the model's context is a limit of its own."""
    body_timeout_s: float = Field(20.0, gt=0)
    """A request must have arrived in this time."""
    request_timeout_s: float = Field(120.0, gt=0)
    """A request is answered in this time or given up."""
    reader_timeout_s: float = Field(60.0, gt=0)
    """A caller who leaves a piece of an answer unread for so long is given up, and what was asked with it."""

    max_batch_size: int = Field(16, ge=1)
    """Samples that one replica makes at once."""
    max_queued_samples: int = Field(64, ge=1)
    """Samples that wait at a replica; what comes on top is told to come again later."""
    step_timeout_s: float = Field(120.0, gt=0)
    """A replica whose engine takes longer for one step is started again."""
    drain_timeout_s: float = Field(30.0, gt=0)
    """What a replica has begun it may end in this time, when it is to go."""
    retry_after_s: int = Field(5, ge=1)
    """When a refused request may come again."""

    @field_validator("image_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"image_hosts: {host!r} must be the full name of a host in small letters, with a port "
                    "where it is not the scheme's: no address, pattern or URL"
                )
        return hosts
