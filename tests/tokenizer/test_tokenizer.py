"""Text in is text out, and text never yields a special token."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.errors import ArtifactError
from transfusion.sequence.special import SpecialIds
from transfusion.tokenizer.tokenizer import Tokenizer
from transfusion.tokenizer.training import train_tokenizer

PROSE = [
    "The quick brown fox jumps over the lazy dog.\n    indented line\n" * 20,
    "a red circle left of a blue square",
    "def f(x):\n\treturn x  # 12345\n",
] * 5


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(PROSE, vocab_size=300, algorithm=request.param, character_coverage=1.0)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    tokenizer = _trained()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def _trained() -> Tokenizer:
    if not hasattr(_trained, "made"):
        _trained.made = train_tokenizer(  # type: ignore[attr-defined]
            PROSE, vocab_size=320, algorithm="bpe", character_coverage=1.0
        )
    return _trained.made  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "spelling",
    [
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
        "<BOS>",
        "<EOS>",
        "<BOI>",
        "<EOI>",
        "<PAD>",
        "<0x41>",
        "<|boi|>",
    ],
)
def test_the_spelling_of_a_special_token_is_text(tokenizer: Tokenizer, spelling: str) -> None:
    ids = tokenizer.encode(f"a {spelling} b").tolist()
    special = SpecialIds.after(tokenizer.num_pieces)
    assert not {special.pad, special.bos, special.eos, special.boi, special.eoi} & set(ids)
    assert 0 not in ids, "<unk> was produced"
    assert tokenizer.decode(ids) == f"a {spelling} b"
    assert len(ids) >= len(spelling) // 3


def test_special_ids_follow_the_pieces_and_decode_to_nothing(tokenizer: Tokenizer) -> None:
    special = SpecialIds.after(tokenizer.num_pieces)
    assert special.pad == tokenizer.num_pieces == 300
    assert special.vocab_size == 305
    ids = [special.bos, *tokenizer.encode("dog").tolist(), special.boi, special.eoi, special.eos]
    assert tokenizer.decode(ids) == "dog"


def test_the_same_text_trains_the_same_model_and_a_pickle_keeps_it(tokenizer: Tokenizer) -> None:
    again = train_tokenizer(PROSE, vocab_size=320, algorithm="bpe", character_coverage=1.0)
    assert again.digest == _trained().digest
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.digest == tokenizer.digest
    assert copy.encode("fox").tolist() == tokenizer.encode("fox").tolist()


def test_a_file_that_is_no_model_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"my\.model: is not a sentencepiece model"):
        Tokenizer(b"<!DOCTYPE html>", where="my.model")


def test_too_little_text_says_what_to_change() -> None:
    with pytest.raises(ArtifactError, match="lower vocab_size, or give more text"):
        train_tokenizer(["a b"], vocab_size=5000, algorithm="bpe", character_coverage=1.0)
    with pytest.raises(ArtifactError, match="no text to train on"):
        train_tokenizer([], vocab_size=5000, algorithm="bpe", character_coverage=1.0)
