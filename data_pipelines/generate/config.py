"""Options of generation."""

from collections.abc import Mapping

from pydantic import Field

from data_pipelines.sampling import SamplesConfig
from transfusion.diffusion.config import SolverName
from transfusion.package.config import model_faults
from transfusion.stage import Upstream


class GenerateConfig(SamplesConfig):
    """Pictures of prompts. What is left out is as the package has it."""

    num_samples: int = Field(default=1, ge=1, le=1000)
    """Pictures of each prompt, each with a seed of its own: of more, the first ones are the same."""

    solver: SolverName | None = None
    """How noise is taken away."""

    num_inference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps of a picture."""

    guidance_scale: float | None = Field(default=None, ge=0, le=20)
    """1 draws what the prompt says without emphasis."""

    negative_prompt: str = ""
    """What guidance leads away from, instead of from nothing."""


def faults(config: GenerateConfig, inputs: Mapping[str, Upstream]) -> list[str]:
    """Whether the solver, where one is named, is made for the schedule that the job's model is trained on."""
    return model_faults(config.solver, inputs["model"])
