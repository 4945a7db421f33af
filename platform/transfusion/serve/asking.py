"""What a caller's parameters come to: within the endpoint's limits, defaults filled in, a seed for each sample."""

from typing import Any

from transfusion.sample.params import SamplingParams
from transfusion.serve.config import EndpointConfig
from transfusion.serve.errors import ApiError
from transfusion.serve.schema import SampleRequest
from transfusion.serve.service import Service, seeds_from


def params_of(
    body: SampleRequest, service: Service, *, count: int, previews: int | None = None, **chosen: Any
) -> list[SamplingParams]:
    """Parameters of each sample of a request.

    Args:
        count: Samples, of all prompts together.
        previews: Of each picture, where the answer streams.
        chosen: What the endpoint decides, in place of the body's.

    Raises:
        ApiError: A value is out of range, or more than the endpoint allows.
    """
    named = body.sampling() | chosen
    for given in (body.sampling(), chosen):
        _check_limits(given, service.config)
    _check_pictures(body.n or 1, named.get("max_images", 1), service.config.max_images)
    if body.stream and previews:
        steps = named["num_inference_steps"] or service.params().num_inference_steps
        named["preview_every"] = -(-steps // (previews + 1))
    return [service.params(**named | {"seed": seed}) for seed in seeds_from(body.seed, count)]


def _check_limits(given: dict[str, Any], limits: EndpointConfig) -> None:
    for name, most in (
        ("max_images", limits.max_images),
        ("max_tokens", limits.max_tokens),
        ("num_inference_steps", limits.max_inference_steps),
    ):
        value = given.get(name)
        if value is not None and value > most:
            raise ApiError(400, f"{name}: must be at most {most}, got {value}", param=name)


def _check_pictures(n: int, each: int, most: int) -> None:
    if n * each > most:
        of_each = f" with {each} pictures each" if each > 1 else ""
        raise ApiError(400, f"n: must be at most {most // each}{of_each}, got {n}", param="n")
