"""The Ray Serve application: replicas of the sampler, each with its own HTTP endpoints and batches."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from transfusion.artifacts.artifact import open_artifact
from transfusion.config import Config
from transfusion.errors import ArtifactError
from transfusion.serve.config import EndpointConfig
from transfusion.serve.guards import key_digests
from transfusion.serve.http import make_app
from transfusion.serve.service import Service
from transfusion.stage import ServeResources
from transfusion.storage.store import open_store

NAME = "transfusion"


class AppArgs(Config):
    """What `build_app` is given, in a Serve config file as `args`."""

    model: str
    """A package's folder, or the address of the artifact that holds it (`STORE/transfusion.package/ID`)."""
    endpoint: EndpointConfig = EndpointConfig()
    resources: ServeResources = ServeResources()


def build_app(args: AppArgs) -> serve.Application:
    """The application; nothing is loaded before a replica starts."""
    endpoint, resources = args.endpoint, args.resources
    slots = endpoint.max_batch_size + endpoint.max_queued_samples
    deployment: Any = serve.deployment(
        _Replica,
        name="Sampler",
        # The replica refuses what it cannot queue in words of its own, and answers /health beside a full queue.
        max_ongoing_requests=slots + 16,
        max_queued_requests=slots + 16,
        backpressure_config=BackpressureConfig(
            status_code=429, retry_after_s=endpoint.retry_after_s
        ),
        autoscaling_config=AutoscalingConfig(
            min_replicas=resources.min_replicas,
            max_replicas=resources.max_replicas,
            target_ongoing_requests=max(1.0, 0.7 * endpoint.max_batch_size),
            upscale_delay_s=10,
            downscale_delay_s=300,
        ),
        ray_actor_options={
            "num_cpus": resources.cpus_per_replica,
            "num_gpus": resources.gpus_per_replica,
        },
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=20,
    )
    # Keys go as digests: arguments of an application can be read in the dashboard.
    return deployment.bind(args.model, endpoint.resolved(), key_digests())


@serve.ingress()
class _Replica:
    """One loaded package and its endpoints."""

    def __init__(self, model: str, endpoint: dict[str, Any], digests: tuple[str, ...]) -> None:
        config = EndpointConfig.model_validate(endpoint)
        self.service = Service.load(package_folder(model), config)
        self.digests = digests

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self.service, digests=self.digests)


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


def start_endpoint(args: AppArgs) -> str:
    """Starts HTTP on the endpoint's host and port and the application behind it; returns the address.

    Ray must be connected. Returns when the model is loaded and answers.
    """
    endpoint = args.endpoint
    serve.start(
        http_options={"host": endpoint.host, "port": endpoint.port}, logging_config=_quiet()
    )
    serve.run(build_app(args), name=NAME, route_prefix="/", logging_config=_quiet())
    return f"http://{endpoint.host}:{endpoint.port}"


def stop_endpoint() -> None:
    """Takes the application down and stops serving."""
    serve.shutdown()


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}
