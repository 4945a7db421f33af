"""Serving a model from the command line, until interrupted."""

import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from transfusion.resources import Resources
from transfusion.runner.cluster import start_ray, stop_ray
from transfusion.runner.show import model_folder
from transfusion.serve.config import EndpointConfig
from transfusion.spec.job import read_job


def serve_model(
    model: Path,
    *,
    overrides: Sequence[str],
    host: str | None,
    port: int | None,
    resources: Resources,
    log: logging.Logger,
) -> None:
    """Serves a package, or the model of a job by its `endpoint:` block, until SIGINT or SIGTERM.

    Raises:
        SpecError: The job makes no model, or it is not clear which; or there are to be keys, and none is given.
        ArtifactError: The model was not made yet, or its files are not what was committed.
    """
    endpoint = EndpointConfig()
    if model.suffix in {".yaml", ".yml"}:
        endpoint = read_job(model, overrides).file.endpoint or endpoint
    told = {
        name: value for name, value in {"host": host, "port": port}.items() if value is not None
    }
    endpoint = endpoint.model_copy(update=told)
    folder = model_folder(model, overrides)
    # Here, for this imports FastAPI; Ray need not start for what is refused.
    from transfusion.serve.guards import key_digests

    key_digests()
    stopped = threading.Event()
    _listen(stopped)
    start_ray(num_cpus=resources.num_cpus, log=log, proxy=resources.serve.proxy)
    # After Ray is up: importing Serve is what takes the time, and a wrong path should not wait for it.
    from transfusion.serve.app import AppArgs, start_endpoint, stop_endpoint

    try:
        args = AppArgs(model=str(folder), endpoint=endpoint, resources=resources.serve)
        address = start_endpoint(args)
        # Ray takes SIGTERM for itself when it comes up, and would break off what is under way.
        _listen(stopped)
        log.info(f"serving {folder}")
        log.info(f"{address}/  the playground, in a browser; /health and /metrics")
        log.info(
            f"{address}/v1  for OpenAI's clients: /chat/completions /completions /images/generations /images/edits"
        )
        log.info(
            f"try: curl {address}/v1/images/generations -H 'content-type: application/json' "
            """-d '{"prompt": "a red circle"}'"""
        )
        log.info("stop with Ctrl-C")
        stopped.wait()
        log.info("stopping")
        stop_endpoint()
    finally:
        stop_ray()


def _listen(stopped: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
