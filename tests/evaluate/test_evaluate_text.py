"""Bits per byte, against sums worked out token by token."""

import math

import numpy as np
import pytest
import torch

from tests.tiny import NUM_PIECES, hidden_behind, package_config, tiny_model
from transfusion.evaluate.text import HeldOutText, Unigram, bits_per_byte, windows
from transfusion.sample.reading import TextPart


def text(length: int, *, seed: int = 0, whole: bool = True) -> HeldOutText:
    ids = np.random.default_rng(seed).integers(0, NUM_PIECES, length).astype(np.int32)
    return HeldOutText(ids, num_bytes=3 * length, whole=whole)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("length", [1, 2, 60, 61, 62, 63, 64, 65, 95, 96, 97, 130, 500])
def test_every_token_is_counted_once_with_half_a_window_before_it(length: int, whole: bool) -> None:
    given = text(length, whole=whole)
    ids = list(given.ids) + (["EOS"] if whole else [])
    counted, context = [], []
    for one in windows(given, 64):
        tokens = (["BOS"] if one.opens else []) + list(one.ids) + (["EOS"] if one.closes else [])
        assert len(tokens) <= 64
        first = len(tokens) - one.num_counted
        counted += tokens[first:]
        context += [(first + i, one.opens) for i in range(one.num_counted)]
    assert counted == ids
    assert all(seen >= 32 or opens for seen, opens in context)
    assert all(seen >= 1 for seen, _ in context)


@torch.no_grad()
def test_bits_are_those_of_reading_token_by_token() -> None:
    model, config = tiny_model(), package_config()
    texts = [text(9), text(30, seed=1), text(1, seed=2), text(20, seed=3, whole=False)]
    nats, special = 0.0, config.special
    for one in texts:
        targets = [*one.ids.tolist(), *([special.eos] if one.whole else [])]
        for index, target in enumerate(targets):
            prefix = TextPart((special.bos, *one.ids[:index].tolist()))
            hidden = hidden_behind(model, config, [prefix])
            nats -= model.logits(hidden[None]).log_softmax(dim=-1)[0, target].item()
    expected = nats / math.log(2) / sum(one.num_bytes for one in texts)
    found = bits_per_byte(model, texts, config=config, batch_size=3)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_long_document_costs_the_same_in_any_batch() -> None:
    model, config = tiny_model(), package_config()
    texts = [text(200, seed=5), text(90, seed=6)]
    one, all_ = (bits_per_byte(model, texts, config=config, batch_size=size) for size in (1, 32))
    assert one == pytest.approx(all_, rel=1e-6)


def test_an_untrained_guess_costs_the_logarithm_of_the_vocabulary() -> None:
    model, config = tiny_model(), package_config()
    with torch.no_grad():
        model.head.weight.zero_()
    found = bits_per_byte(model, [text(200)], config=config, batch_size=8)
    assert found == pytest.approx(201 * math.log2(model.vocab_size) / 600, rel=1e-6)


def test_the_unigram_is_add_one_over_tokens_and_ends() -> None:
    unigram = Unigram(3)
    unigram.learn(np.array([0, 0, 1], np.int32))
    # Counts 0: 2, 1: 1, 2: 0, end: 1; with one added 3, 2, 1, 2 of 8.
    held_out = HeldOutText(np.array([0, 2], np.int32), num_bytes=5, whole=True)
    expected = (math.log2(8 / 3) + math.log2(8 / 1) + math.log2(8 / 2)) / 5
    assert unigram.bits_per_byte([held_out]) == pytest.approx(expected)
