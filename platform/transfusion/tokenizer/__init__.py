"""Text to token ids and back: sentencepiece models, trained here or loaded."""
