"""What the endpoints share: the model, its limits, and asking it."""

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from transfusion.errors import SpecError
from transfusion.package.load import load_parts
from transfusion.sample.engine import Engine
from transfusion.sample.events import Ended, ImageDrawn, ImagePreview
from transfusion.sample.memory import keep_freed_memory
from transfusion.sample.params import MAX_SEED, SamplingParams, params_with
from transfusion.sample.reading import ImagePart
from transfusion.sample.rows import Request, check_request
from transfusion.sample.sampler import Given, Pixels, Processor, Sample, Sampler
from transfusion.serve.config import EndpointConfig
from transfusion.serve.deadline import Deadline
from transfusion.serve.decoder import Decoder
from transfusion.serve.errors import ApiError
from transfusion.serve.loop import EngineGoneError, EngineLoop, Events, QueueFullError, Runner
from transfusion.serve.messages import EngineArgs
from transfusion.serve.metrics import Metrics
from transfusion.serve.process import EngineProcess
from transfusion.serve.prompts import check_length, check_unicode
from transfusion.serve.start import StartClock
from transfusion.serve.stepping import ThreadRunner


class Service:
    """One model behind all endpoints of a replica."""

    def __init__(
        self,
        processor: Processor,
        config: EndpointConfig,
        *,
        runner: Runner | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Over an engine that runs.

        Args:
            runner: When left out, a thread of this process, for which `processor` must be a sampler.
        """
        self.processor = processor
        self.config = config
        self.package = processor.package.config
        self.created = int(time.time())
        self.metrics = metrics or Metrics()
        self.is_new_model_refused = False
        self.decoder = Decoder(processor, threads=config.threads)
        if runner is None:
            assert isinstance(processor, Sampler), "without a runner the model must be here"
            runner = self._on_a_thread(processor)
        self.loop = EngineLoop(
            runner,
            max_rows=config.max_batch_size,
            max_queued=config.max_queued_samples,
            metrics=self.metrics,
        )

    @staticmethod
    def load(
        folder: Path,
        config: EndpointConfig,
        *,
        metrics: Metrics | None = None,
        clock: StartClock | None = None,
    ) -> "Service":
        """Verifies a package and loads it: its model in a process of the engine's own, the rest here.

        Raises:
            ArtifactError: A file is missing, was altered or does not fit the config; it is named.
        """
        keep_freed_memory()
        metrics, clock = metrics or Metrics(), clock or StartClock(is_first=False)
        began = time.perf_counter()
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = EngineProcess(
            EngineArgs(
                folder=folder,
                weights=config.weights,
                device=device,
                precision=config.precision,
                max_rows=config.max_batch_size,
                threads=config.threads,
                is_compiled=config.compile,
            ),
            metrics=metrics,
        )
        try:
            processor = Processor(load_parts(folder, device=device))
            processor.warm_up()
            warm_up_s = engine.wait_until_ready()
        except BaseException:
            engine.close()
            raise
        clock.add("weights", time.perf_counter() - began - warm_up_s)
        clock.add("warm_up", warm_up_s)
        return Service(processor, config, runner=engine, metrics=metrics)

    def _on_a_thread(self, sampler: Sampler) -> ThreadRunner:
        engine = Engine(
            sampler.package.model,
            self.package,
            max_rows=self.config.max_batch_size,
            decode=sampler.package.tokenizer.decode,
        )
        return ThreadRunner(engine, threads=self.config.threads, metrics=self.metrics)

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
            given = [name for name, value in chosen.items() if value is not None]
            param = next((name for name in given if name in message), None)
            raise ApiError(400, message, param=param) from error

    def requests(
        self,
        prompt: str | Sequence[Given],
        each: Sequence[SamplingParams],
        *,
        negative_prompt: str | None = None,
        param: str = "prompt",
    ) -> list[Request]:
        """Samples of one prompt, each sure to fit; they share what is read of it.

        Raises:
            ApiError: The prompt is empty, no text, or too long.
        """
        segments = [prompt] if isinstance(prompt, str) else list(prompt)
        texts = [segment for segment in segments if isinstance(segment, str)]
        if len(texts) == len(segments) and not "".join(texts).strip():
            raise ApiError(400, f"{param}: must not be empty", param=param)
        check_unicode([*texts, negative_prompt or ""], param)
        self.check_fits(texts, param)
        self.check_fits([negative_prompt or ""], "negative_prompt")
        first = self.processor.request(segments, each[0], negative_prompt=negative_prompt or "")
        requests = [Request(first.prompt, one, first.negative_prompt) for one in each]
        for request in requests:
            try:
                check_request(request, self.package)
            except ValueError as error:
                raise ApiError(
                    400, f"{param}: {error}", param=param, code="context_length_exceeded"
                ) from error
        return requests

    def check_fits(self, texts: Sequence[str], param: str) -> None:
        """Raises ApiError for what cannot fit, before it is cut into tokens: megabytes take seconds."""
        package = self.processor.package
        context, longest = package.config.sequence_length, package.tokenizer.max_piece_chars
        why = f"the model's context has {context} tokens, of {longest} characters at most"
        check_length(sum(map(len, texts)), context * longest, param, why)

    def check_model(self, name: str | None) -> None:
        """Raises ApiError when a caller names another model than this."""
        if name is not None and name != self.package.name:
            raise ApiError(
                404,
                f"model: there is no model of that name here; there is {self.package.name!r}",
                param="model",
                code="model_not_found",
            )

    def admit(self, model: str | None, *, count: int, asked_s: float | None = None) -> Deadline:
        """Turns away who asks for another model, or comes when all places are taken, before any work is done.

        Args:
            count: Samples asked for.
            asked_s: The caller's own limit.

        Raises:
            ApiError: There is no such model (404), or the server is full (429).
        """
        self.check_model(model)
        refused = self.refusal(count)
        if refused is not None:
            raise refused
        return self.deadline(asked_s)

    def refusal(self, count: int = 1) -> ApiError | None:
        """A 429 when there is no place for so many samples more, and counts them as rejected."""
        if not self.loop.is_full(count):
            return None
        self.metrics.rejected(count)
        return self._busy()

    def _busy(self) -> ApiError:
        return ApiError(
            429,
            f"the server is busy: {self.loop.num_queued} samples are waiting; come again later",
            code="server_busy",
            headers={"Retry-After": str(self.config.retry_after_s)},
        )

    def deadline(self, asked_s: float | None = None) -> Deadline:
        """From now; a caller may only shorten it."""
        return Deadline(min(asked_s or math.inf, self.config.request_timeout_s))

    async def ask(
        self, requests: Sequence[Request], deadline: Deadline | None = None
    ) -> list[Sample]:
        """Answers to a caller's requests.

        Raises:
            ApiError: The server is full (429), or takes too long (408).
        """
        deadline = deadline or self.deadline()
        results, images = {}, {}
        try:
            async for index, event in self.events(requests, deadline):
                if isinstance(event, ImageDrawn):
                    decoding = asyncio.create_task(self.decoder.decode(event.part))
                    images[index, event.index] = decoding
                elif isinstance(event, Ended):
                    results[index] = event.result
            samples = []
            async with deadline.kept():
                for index in range(len(requests)):
                    drawn = [await images[key] for key in sorted(images) if key[0] == index]
                    samples.append(self.processor.sample_of(results[index], iter(drawn)))
            return samples
        finally:
            for decoding in images.values():
                decoding.cancel()

    async def events(self, requests: Sequence[Request], deadline: Deadline | None = None) -> Events:
        """What comes of a caller's requests, as it comes; whoever stops reading and closes it gives them up.

        Raises:
            ApiError: The server is full (429), takes too long (408), or its engine has died (503).
        """
        deadline = deadline or self.deadline()
        try:
            async with self.loop.ask(requests) as events:
                while True:
                    async with deadline.kept():
                        told = await anext(events, None)
                    if told is None:
                        return
                    if isinstance(told[1], Ended):
                        self.metrics.tokens(told[1].result.num_tokens)
                        self.metrics.images(len(told[1].result.images))
                    yield told
        except QueueFullError as error:
            raise self._busy() from error
        except EngineGoneError as error:
            raise ApiError(
                503,
                "the engine has died and is started again; ask again",
                code="engine_gone",
                headers={"Retry-After": str(self.config.retry_after_s)},
            ) from error

    async def pixels(self, event: ImageDrawn | ImagePreview) -> Pixels:
        """An image that is done, or as it would be now."""
        part = event.part if isinstance(event, ImageDrawn) else ImagePart(event.latent)
        return await self.decoder.decode(part)

    def close(self) -> None:
        """Stops the engine and the decoder, and lets go of the model: nothing may be asked any more."""
        self.loop.close()
        self.decoder.close()
        # FastAPI remembers endpoints, and they this: what is heavy must not be held by it.
        del self.loop, self.decoder, self.processor


def seeds_from(seed: int | None, count: int) -> list[int]:
    """One seed a sample: counted up from the caller's, or drawn."""
    first = secrets.randbelow(MAX_SEED) if seed is None else seed
    return [(first + index) % (MAX_SEED + 1) for index in range(count)]


def usage(read: int, written: int) -> dict[str, int]:
    """Positions of prompts and tokens written, as OpenAI's clients read them."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
