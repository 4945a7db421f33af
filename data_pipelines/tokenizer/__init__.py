"""A sentencepiece tokenizer: trained on listings, or a user's own."""

from data_pipelines.tokenizer.config import TokenizerConfig
from transfusion.stage import ANY_ROLE, Input, Stage

STAGE = Stage(
    config=TokenizerConfig,
    inputs={ANY_ROLE: Input(kinds=("listing",), required=False)},
    output="tokenizer",
    body="data_pipelines.tokenizer.run:run",
    version=1,
    raw="data_pipelines.tokenizer.config:raw_input",
    check="data_pipelines.tokenizer.config:check",
    needs_ray=False,
    summary="A sentencepiece tokenizer, trained here or loaded.",
)
