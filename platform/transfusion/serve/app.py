"""The Ray Serve application: replicas of the sampler, each with its own HTTP endpoints and batches."""

import logging
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from transfusion.config import Config
from transfusion.resources import ServeResources
from transfusion.serve.config import EndpointConfig
from transfusion.serve.guards import key_digests
from transfusion.serve.metrics import Metrics
from transfusion.serve.ray_metrics import RayInstruments
from transfusion.serve.replica import Replica, ReplicaConfig

logger = logging.getLogger("transfusion.serve")

NAME = "transfusion"
DEPLOYMENT = "Sampler"

TARGET_FILL = 0.7
"""Requests of a replica that autoscaling aims at, of those that it answers at once: room for a new one to join."""


class AppArgs(Config):
    """What `build_app` is given, in a Serve config file as `args`."""

    model: str | None = None
    """As `ReplicaConfig` has it. None where the file names the model in the deployment's `user_config`: a change
    there swaps weights, a change here starts all replicas again."""
    endpoint: EndpointConfig = EndpointConfig()
    resources: ServeResources = ServeResources()


def build_app(args: AppArgs) -> serve.Application:
    """The application; nothing is loaded before a replica starts."""
    endpoint, resources = args.endpoint, args.resources
    slots = endpoint.max_batch_size + endpoint.max_queued_samples
    deployment: Any = serve.deployment(
        _Replica,
        name=DEPLOYMENT,
        user_config=None if args.model is None else {"model": args.model},
        # The replica refuses what it cannot queue in words of its own, and answers /health beside a full queue.
        max_ongoing_requests=slots + 16,
        max_queued_requests=slots + 16,
        backpressure_config=BackpressureConfig(
            status_code=429, retry_after_s=endpoint.retry_after_s
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=resources.min_replicas,
            max_replicas=resources.max_replicas,
            target_ongoing_requests=max(1.0, TARGET_FILL * endpoint.max_batch_size),
            upscale_delay_s=resources.upscale_delay_s,
            downscale_delay_s=resources.downscale_delay_s,
            look_back_period_s=resources.look_back_period_s,
        ),
        ray_actor_options={
            "num_cpus": resources.cpus_per_replica,
            "num_gpus": resources.gpus_per_replica,
        },
        health_check_timeout_s=60,
        # A replica that must go answers first what it has begun.
        graceful_shutdown_timeout_s=endpoint.drain_timeout_s,
        # A damaged package stays damaged; a store that stumbles has been asked again below.
        max_constructor_retry_count=3,
    )
    # Keys go as digests: arguments of an application can be read in the dashboard.
    return deployment.bind(endpoint.resolved(), key_digests())


@serve.ingress()
class _Replica:
    """A replica as Ray Serve calls it."""

    def __init__(self, endpoint: dict[str, Any], digests: tuple[str, ...]) -> None:
        config = EndpointConfig.model_validate(endpoint)
        self.replica = Replica(
            config,
            digests=digests,
            metrics=Metrics(RayInstruments()),
            # Serve's proxy names every request itself.
            tells_request_id=False,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self.replica.take(ReplicaConfig.model_validate(user_config))

    def check_health(self) -> None:
        self.replica.check()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self.replica.app


def start_endpoint(args: AppArgs) -> str:
    """Starts HTTP on the endpoint's host and port and the application behind it; returns the address.

    Ray must be connected. Returns when the model is loaded and answers.
    """
    endpoint = args.endpoint
    # What it says while it starts: our own lines say the same.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        http_options={"host": endpoint.host, "port": endpoint.port}, logging_config=_quiet()
    )
    serve.run(build_app(args), name=NAME, route_prefix="/", logging_config=_quiet())
    return f"http://{endpoint.host}:{endpoint.port}"


def stop_endpoint() -> None:
    """Lets replicas end what they have begun, within `drain_timeout_s`, and stops serving.

    Serve itself waits for a minute at most; what takes longer is broken off.
    """
    try:
        # Proxies live meanwhile; a shutdown alone begins with them, and with what they carry.
        serve.delete(NAME)
    except TimeoutError as error:
        logger.warning("what the endpoint had begun is broken off: %s", error)
    serve.shutdown()


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}
