"""What is asked of the noise: names and numbers, without torch, so that a plan can read them."""

from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config

ScheduleName = Literal["cosine", "linear"]


class ObjectiveConfig(Config):
    """What is learned from a batch."""

    diffusion_weight: float = Field(default=5.0, ge=0)
    """Weight of the diffusion loss against the language loss."""

    schedule: ScheduleName = "cosine"
    """Noise schedule."""

    num_timesteps: int = Field(default=1000, ge=2)
    """Timesteps of the noise schedule."""

    noise_limit: int = Field(default=500, ge=1)
    """An image that later text sees draws its timestep below this: text about noise teaches little."""

    @model_validator(mode="after")
    def _limit_within_schedule(self) -> "ObjectiveConfig":
        if self.noise_limit > self.num_timesteps:
            raise ValueError(
                f"noise_limit must be at most num_timesteps {self.num_timesteps}, got {self.noise_limit}"
            )
        return self
