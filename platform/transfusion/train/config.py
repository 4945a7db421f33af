"""Config of training the transformer."""

from typing import Literal

from pydantic import Field, model_validator

from transfusion.config import Location
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.model.config import ModelConfig
from transfusion.train.loop_config import LoopConfig

LrRule = Literal["none", "mup"]


class TrainConfig(LoopConfig):
    """A mixture to weights. How many sequences a step sees is the plan's: its lanes and micro-batches."""

    model: ModelConfig
    """Architecture; `transfusion.model.presets` lists sizes with their parameter counts."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """What is predicted of images, how they are noised, and what the losses weigh."""

    init_from: Location | None = None
    """A folder to start from: a model package, or a Llama-family checkpoint in the layout of Hugging Face; a stage
    of the job comes as the input `init_from` instead. What it has no weights for is drawn, as without it; new
    rows of its vocabulary like its others."""

    init_strict: bool = True
    """Whether weights of the folder that have no place in the model end the run; else they are left out."""

    lr_scale_pretrained: float = Field(1.0, ge=0)
    """Learning rate of matrices that were loaded against that of those that were drawn; 0 keeps them as they were.
    New rows of a vocabulary that was loaded go with it."""

    lr_rule: LrRule = "none"
    """How rates follow the width: not at all, or as `mup` has it, where the best `lr` at `base_width` is to be the
    best at every width. Widen by more heads of the same width."""

    base_width: int | None = Field(None, ge=1)
    """Of `mup`: the `model.dim` that `lr` was found at, and at which nothing is scaled."""

    frozen_text: bool = False
    """Text's weights stay as they were loaded, and patches' own are trained beside them (LMFusion): what the model
    says of text without images does not change. Rows of the vocabulary that were drawn anew are frozen too: a
    model that had no BOI does not learn when to draw, and draws when it is asked to. Needs `model.weights:
    by_modality`."""

    compile: bool = False
    """Blocks, a U-Net's too, are compiled: a minute or two at the start, faster steps on GPUs, other last bits."""

    lm_head_chunk_rows: int | None = Field(None, ge=1)
    """Text rows whose logits exist at once; the others' are computed in turn, and again on the way back. For
    vocabularies of 32,000 and more: 8,192 rows of them are a GiB. All at once when left out."""

    preview_captions: int = Field(0, ge=0, le=8)
    """Held-out images at most that each preview describes as well, those of the captions that it draws: what is
    said of them is in its JSON beside the true words, and the share of right tokens, place by place, is
    validation's `caption_token_accuracy`. So few images show a trend at most; the evaluation scores."""

    repeat_first_step: bool = False
    """Every step trains on the first batch of the plan, with the same noise and timesteps. Its loss must come near
    zero: the first thing to try when a run learns nothing. Nothing is validated."""

    @model_validator(mode="after")
    def _captions_have_previews(self) -> "TrainConfig":
        if self.preview_captions and not self.preview_every_steps:
            raise ValueError(
                f"preview_captions are a part of previews, got {self.preview_captions} with none: set "
                "preview_every_steps"
            )
        return self

    @model_validator(mode="after")
    def _width_is_known(self) -> "TrainConfig":
        if (self.lr_rule == "mup") != (self.base_width is not None):
            raise ValueError(
                "base_width and lr_rule 'mup' go together, the width that lr was found at and the rule that "
                f"scales by it, got lr_rule {self.lr_rule!r} with base_width {self.base_width}"
            )
        return self
