"""Config of training the transformer."""

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.model.config import ModelConfig
from transfusion.train.loop_config import LoopConfig


class TrainConfig(LoopConfig):
    """A mixture to weights. How many sequences a step sees is the plan's: its lanes and micro-batches."""

    model: ModelConfig
    """Architecture; `transfusion.model.presets` lists sizes with their parameter counts."""

    objective: ObjectiveConfig = ObjectiveConfig()
