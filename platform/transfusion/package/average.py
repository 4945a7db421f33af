"""Stage: one model whose weights are the mean of those of several, such as runs of several seeds from one start.

Models that began from weights of their own have no common meaning of a channel: their mean is of no use.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from transfusion.config import Config
from transfusion.package.config import SamplingDefaults
from transfusion.stage import ANY_ROLE, Input, Stage


class AverageConfig(Config):
    """What the mean is taken with."""

    shares: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Of each input by its role; they are divided by their sum. All alike when left out."""

    sampling: SamplingDefaults | None = None
    """Defaults for whoever samples from it; those of the inputs, which must then agree, when left out."""


def check(config: AverageConfig, roles: Mapping[str, str]) -> list[str]:
    """Faults that types do not show: one model alone, or shares that are not of the inputs."""
    faults = []
    if len(roles) < 2:
        faults.append(f": a mean takes two models or more, got {len(roles)}; name further inputs")
    if config.shares and set(config.shares) != set(roles):
        faults.append(
            f".shares: must name each input once ({', '.join(sorted(roles))}), got "
            f"{', '.join(sorted(config.shares))}"
        )
    return faults


STAGE = Stage(
    config=AverageConfig,
    inputs={ANY_ROLE: Input(kinds=("model",))},
    output="model",
    check="transfusion.package.average:check",
    body="transfusion.package.average_write:run",
    version=1,
    needs_ray=False,
    summary="The mean of several models' weights, as one model",
)
