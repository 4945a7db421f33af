"""Options of tokenization: none, for all that decides the ids belongs to the tokenizer."""

from transfusion.config import Config


class TokenizeTextConfig(Config):
    """The text of a listing to token ids."""
