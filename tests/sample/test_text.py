"""The draw of a next token, against frequencies and cuts worked out by hand."""

import torch

from transfusion.sample.text import next_tokens

# Probabilities .5 .3 .15 .05 in an order that is not sorted.
LOGITS = torch.log(torch.tensor([0.15, 0.5, 0.05, 0.3]))


def draw(uniform, *, temperature=1.0, top_p=1.0, top_k=0, allowed=None):
    b = len(uniform)
    return next_tokens(
        LOGITS.expand(b, 4),
        allowed=torch.ones(b, 4, dtype=torch.bool) if allowed is None else allowed.expand(b, 4),
        temperature=torch.full((b,), temperature),
        top_p=torch.full((b,), top_p),
        top_k=torch.full((b,), top_k),
        uniform=torch.tensor(uniform),
    ).tolist()


EVEN = [(i + 0.5) / 1000 for i in range(1000)]


def counts(tokens):
    return [tokens.count(i) for i in range(4)]


def test_tokens_come_as_often_as_they_are_likely():
    assert counts(draw(EVEN)) == [150, 500, 50, 300]


def test_temperature_sharpens():
    # Squared and normalised: .25 .09 .0225 .0025 of .365, met at the middle of each thousandth.
    assert counts(draw(EVEN, temperature=0.5)) == [61, 685, 7, 247]


def test_no_temperature_takes_the_likeliest():
    assert counts(draw(EVEN, temperature=0.0)) == [0, 1000, 0, 0]


def test_top_k_keeps_the_likeliest_in_proportion():
    assert counts(draw(EVEN, top_k=2)) == [0, 625, 0, 375]


def test_top_p_keeps_the_fewest_that_reach_it():
    assert counts(draw(EVEN, top_p=0.79)) == [0, 625, 0, 375]
    assert counts(draw(EVEN, top_p=1e-6)) == [0, 1000, 0, 0]


def test_forbidden_tokens_never_come():
    assert counts(draw(EVEN, allowed=torch.tensor([True, False, True, False]))) == [750, 0, 250, 0]
    assert draw([0.0], temperature=0.0, allowed=torch.tensor([False, False, True, False])) == [2]


def test_the_ends_of_the_draw_are_tokens_that_may_come():
    assert draw([0.0, 1.0 - 2**-24]) == [1, 2]
    assert draw([1.0 - 2**-24], top_k=1) == [1]


def test_rows_have_their_own_settings():
    tokens = next_tokens(
        LOGITS.expand(2, 4),
        allowed=torch.ones(2, 4, dtype=torch.bool),
        temperature=torch.tensor([0.0, 1.0]),
        top_p=torch.tensor([1.0, 1.0]),
        top_k=torch.tensor([0, 0]),
        uniform=torch.tensor([0.99, 0.99]),
    )
    assert tokens.tolist() == [1, 2]


def test_settings_that_are_nothing_in_fp32_take_the_likeliest():
    for tiny in (1e-300, 1e-46, 1e-30):
        assert draw([0.0, 0.5, 0.999], top_p=tiny) == [1, 1, 1]
        assert draw([0.0, 0.5, 0.999], temperature=tiny) == [1, 1, 1]
        assert draw([0.999], top_p=tiny, temperature=2.0, top_k=1) == [1]
