"""The text of a listing to token ids."""

from data_pipelines.tokenize_text.config import TokenizeTextConfig
from transfusion.stage import Input, Stage

STAGE = Stage(
    config=TokenizeTextConfig,
    inputs={
        "documents": Input(kinds=("listing",)),
        "tokenizer": Input(kinds=("tokenizer",)),
        "captions": Input(kinds=("captions",), required=False),
    },
    output="tokens",
    body="data_pipelines.tokenize_text.run:run",
    version=2,
    summary="The text of a listing to token ids.",
)
