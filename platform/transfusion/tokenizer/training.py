"""Training a sentencepiece model that loses nothing: byte fallback, no normalisation, spaces kept."""

import io
from collections.abc import Iterable, Iterator
from typing import Literal

import sentencepiece

from transfusion.errors import ArtifactError
from transfusion.tokenizer.tokenizer import Tokenizer

Algorithm = Literal["bpe", "unigram"]

SENTENCE_BYTES = 4096
"""Longer lines are cut: sentencepiece skips what is longer than its limit, without a word."""


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, algorithm: Algorithm, character_coverage: float
) -> Tokenizer:
    """A tokenizer of `vocab_size` pieces, 256 of them bytes.

    The same texts in the same order give the same model: one thread, no sampling by sentencepiece.

    Raises:
        ArtifactError: There is no text, or too little for that many pieces.
    """
    sentences = _sentences(texts)
    first = next(sentences, None)
    if first is None:
        raise ArtifactError("tokenizer: there is no text to train on; name a listing that has some")
    model = io.BytesIO()
    sentencepiece.set_min_log_level(3)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_chain(first, sentences),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=2 * SENTENCE_BYTES,
            # Our special ids follow the pieces, so the model has none but the obligatory <unk>.
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=3,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).rpartition("] ")[2].split())
        too_few = "required_chars" in reason
        remedy = "raise vocab_size or lower character_coverage" if too_few else "lower vocab_size"
        raise ArtifactError(
            f"tokenizer: cannot train {vocab_size} pieces; {remedy}, or give "
            f"{'less varied' if too_few else 'more'} text (sentencepiece: {reason})"
        ) from error
    return Tokenizer(model.getvalue())


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines with their newline, none longer than sentencepiece takes."""
    step = SENTENCE_BYTES // 4
    for text in texts:
        for line in text.splitlines(keepends=True):
            # NUL ends a string inside the trainer; in encoding it is a byte like others.
            clean = line.replace("\0", "")
            for start in range(0, len(clean), step):
                yield clean[start : start + step]
