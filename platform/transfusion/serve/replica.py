"""A replica of the sampler: one loaded model behind HTTP, which another can take the place of."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from transfusion.artifacts.artifact import open_artifact
from transfusion.config import Config
from transfusion.errors import ArtifactError
from transfusion.serve.config import EndpointConfig
from transfusion.serve.http import make_app
from transfusion.serve.metrics import Metrics
from transfusion.serve.service import Service
from transfusion.serve.start import StartClock
from transfusion.storage.store import open_store

logger = logging.getLogger("transfusion.serve")


class ReplicaConfig(Config):
    """What is changed while replicas serve: `user_config` of the deployment in a Serve config file."""

    model: str
    """A package's folder, or the address of the artifact that holds it (`STORE/transfusion.package/ID`)."""


@dataclass(slots=True, eq=False)
class _Served:
    config: ReplicaConfig
    service: Service
    app: ASGIApp
    num_requests: int = 0
    is_retired: bool = False


class Replica:
    """Serves one model at a time, and the next one from the first request that comes after it is ready.

    What is under way ends on the model that it began with; until then both are in memory. A model that cannot be
    loaded is refused: the one before it goes on, `/health` says so, and the log says why.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        *,
        digests: Sequence[str] = (),
        metrics: Metrics | None = None,
        tells_request_id: bool = True,
    ) -> None:
        """Loads nothing yet.

        Args:
            digests: sha256 of the keys that may ask; none for everybody.
            tells_request_id: See `make_app`.
        """
        self._endpoint, self._digests = endpoint, tuple(digests)
        self._metrics = metrics or Metrics()
        self._tells_request_id = tells_request_id
        self._served: _Served | None = None
        # The outer application only starts and stops: it has no routes, and what no route takes is answered here,
        # whatever stands in its path (a mount's pattern takes no line breaks).
        self.app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
        self.app.router.default = self._answer

    @property
    def service(self) -> Service:
        """Of the model that answers."""
        assert self._served is not None, "no model is loaded"
        return self._served.service

    async def take(self, config: ReplicaConfig) -> None:
        """Loads a model beside what is served, and lets it answer; what is served already is not loaded again.

        Ray Serve says the same once more to a replica whose rank changes as others come and go. What was refused
        is tried again then: a store that was away may be back.

        Raises:
            ArtifactError: There is no such package, or its files are not what was committed; only of the first.
        """
        if self._served is not None and config == self._served.config:
            self.service.is_new_model_refused = False
            return
        clock = StartClock(is_first=self._served is None)
        try:
            service = await asyncio.to_thread(self._load, config.model, clock)
        except Exception:
            if self._served is None:
                raise
            # Raising would end this replica, and with it a model that answers well.
            logger.exception("%s is refused; the model before it goes on", config.model)
            self.service.is_new_model_refused = True
            return
        for part, seconds in clock.parts.items():
            self._metrics.start(seconds, part)
        logger.warning("serves %s: %s", config.model, clock)
        app = make_app(service, digests=self._digests, tells_request_id=self._tells_request_id)
        before, self._served = self._served, _Served(config, service, app)
        if before is not None:
            before.is_retired = True
            await self._close_if_unused(before)

    def check(self) -> None:
        """Raises RuntimeError when the engine is unwell: see `EngineLoop.check`."""
        if self._served is not None:
            self.service.loop.check(step_timeout_s=self._endpoint.step_timeout_s)

    def _load(self, model: str, clock: StartClock) -> Service:
        began = time.perf_counter()
        folder = package_folder(model)
        clock.add("fetch", time.perf_counter() - began)
        return Service.load(folder, self._endpoint, metrics=self._metrics, clock=clock)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        served = self._served
        assert served is not None, "requests come after the first model"
        served.num_requests += 1
        try:
            await served.app(scope, receive, send)
        finally:
            served.num_requests -= 1
            if served.is_retired:
                await self._close_if_unused(served)

    async def _close_if_unused(self, served: _Served) -> None:
        if not served.num_requests:
            await asyncio.to_thread(served.service.close)


def package_folder(model: str) -> Path:
    """A local folder with a package: a path, or an artifact's address in a store.

    Raises:
        ArtifactError: There is no package.
    """
    if "://" not in model and (Path(model) / "config.json").is_file():
        return Path(model)
    store, _, rest = model.rstrip("/").rpartition("/transfusion.package/")
    if not store:
        raise ArtifactError(
            f"{model}: is no model package; give its folder, or STORE/transfusion.package/ID"
        )
    artifact = open_artifact(open_store(store), f"transfusion.package/{rest}/manifest.json")
    return artifact.folder()
