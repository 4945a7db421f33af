"""Configuration of the package stage, and how a packaged model is sampled unless a caller says otherwise."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Config
from transfusion.diffusion.config import SOLVER_STEPS, SolverName, check_solver
from transfusion.stage import Upstream


class ImageSampling(Config):
    """How images are drawn."""

    solver: SolverName = "ddim"
    """How noise is taken away."""

    num_inference_steps: int = Field(50, ge=1)
    """Denoising steps of an image."""

    guidance_scale: float = Field(3.0, ge=0, le=20)
    """1 draws what the prompt says without emphasis; more follows it harder."""

    code_temperature: float = Field(1.0, ge=0, le=2, exclude_if=lambda value: value == 1)
    """Of codes, where images are tokens; 0 always takes the likeliest code."""

    code_top_p: float = Field(1.0, gt=0, le=1, exclude_if=lambda value: value == 1)
    """Codes are drawn from the likeliest that hold this much probability."""

    @model_validator(mode="after")
    def _steps_keep_the_variance(self) -> "ImageSampling":
        low, high = SOLVER_STEPS[self.solver]
        if not low <= self.num_inference_steps <= high:
            raise ValueError(
                f"num_inference_steps must be {low} to {high} for solver {self.solver!r}, "
                f"got {self.num_inference_steps}"
            )
        return self


class SamplingDefaults(ImageSampling):
    """How images are drawn and text is written."""

    temperature: float = Field(1.0, ge=0, le=2)
    """Of text; 0 always takes the likeliest token."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Text is drawn from the likeliest tokens that hold this much probability."""

    top_k: int = Field(0, ge=0)
    """Text is drawn from this many likeliest tokens; 0 for all."""


class PackageStageConfig(Config):
    """What the package says beside the weights."""

    sampling: SamplingDefaults = SamplingDefaults()
    """Defaults for whoever samples from it."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the stored weights."""


def faults(config: PackageStageConfig, inputs: Mapping[str, Upstream]) -> list[str]:
    """Whether the default solver is made for the schedule that the run of the job is trained on."""
    return [f".sampling{fault}" for fault in _solver_faults(config.sampling.solver, inputs["run"])]


def model_faults(solver: SolverName | None, model: Upstream) -> list[str]:
    """The same of a stage that draws with a model of the job; None for the package's own solver."""
    run = model.inputs.get("run")
    return [] if solver is None or run is None else _solver_faults(solver, run)


def _solver_faults(solver: SolverName, run: Upstream) -> list[str]:
    """Whether a solver is made for the schedule of a run, as `.field: rule`."""
    try:
        check_solver(solver, schedule=run.config.resolved()["objective"]["schedule"])
    except ValueError as error:
        return [f".solver: {error}"]
    return []
