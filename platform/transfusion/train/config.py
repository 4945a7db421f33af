"""Config of training the transformer."""

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.model.config import ModelConfig
from transfusion.train.loop_config import LoopConfig


class TrainConfig(LoopConfig):
    """A mixture to weights. How many sequences a step sees is the plan's: its lanes and micro-batches."""

    model: ModelConfig
    """Architecture; `transfusion.model.presets` lists sizes with their parameter counts."""

    objective: ObjectiveConfig = ObjectiveConfig()

    repeat_first_step: bool = False
    """Every step trains on the first batch of the plan, with the same noise and timesteps. Its loss must come near
    zero: the first thing to try when a run learns nothing. Nothing is validated."""
