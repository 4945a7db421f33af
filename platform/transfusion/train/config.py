"""Config of training the transformer."""

from pydantic import Field

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.model.config import ModelConfig
from transfusion.train.loop_config import LoopConfig


class TrainConfig(LoopConfig):
    """A mixture to weights. How many sequences a step sees is the plan's: its lanes and micro-batches."""

    model: ModelConfig
    """Architecture; `transfusion.model.presets` lists sizes with their parameter counts."""

    objective: ObjectiveConfig = ObjectiveConfig()

    sample_every_steps: int = Field(0, ge=0)
    """Draws a grid of held-out captions so often, with the averaged weights; 0 for never. The model must fit
    on one worker whole."""
