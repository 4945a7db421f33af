"""Stage: the text half of a run as a Llama checkpoint, in the layout of Hugging Face."""

from transfusion.config import Config
from transfusion.package.format import Weights
from transfusion.stage import Input, Stage


class ToLlamaConfig(Config):
    """What is written."""

    weights: Weights = "ema"
    """The averaged weights, or those as trained."""


STAGE = Stage(
    config=ToLlamaConfig,
    inputs={"run": Input(kinds=("run",)), "tokenizer": Input(kinds=("tokenizer",))},
    output="llama",
    body="transfusion.package.llama_write:run",
    version=1,
    needs_ray=False,
    summary="A run's transformer in the layout of Hugging Face, to start from or to be read by others",
)
