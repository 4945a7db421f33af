"""Text as it comes, against the text as a whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_tokenizer
from transfusion.sample.stream import TextStream

TOKENIZER = tiny_tokenizer()


def streamed(text: str, stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(lambda ids: TOKENIZER.decode(ids), stops)
    deltas = []
    for token in TOKENIZER.encode(text).tolist():
        deltas.append(stream.push(token))
        if stream.is_stopped:
            break
    deltas.append(stream.end())
    return deltas, stream


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=40))
def test_the_pieces_are_the_whole_text_and_no_half_characters(text: str) -> None:
    whole = TOKENIZER.decode(TOKENIZER.encode(text).tolist())
    deltas, stream = streamed(text)
    assert "".join(deltas) == stream.text == whole
    if "\ufffd" not in whole:
        assert all("\ufffd" not in delta for delta in deltas)


@pytest.mark.parametrize("stops", [["d s"], ["square", "red"], ["e"], ["zebra"]])
def test_text_ends_before_the_first_stop_and_shows_no_part_of_it(stops) -> None:
    text = "a big red square and a red circle"
    ends = [text.find(stop) for stop in stops if stop in text]
    deltas, stream = streamed(text, stops)
    assert "".join(deltas) == (text[: min(ends)] if ends else text)
    assert stream.is_stopped == bool(ends)
    for stop in stops:
        assert stop not in "".join(deltas)
