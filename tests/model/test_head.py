"""The head's product comes out even for a GPU, and is the same."""

import pytest
import torch

from transfusion.model.head import ALIGNED, Head, padded_product


@pytest.mark.parametrize("vocab_size", [1, 63, ALIGNED, 101])
def test_a_padded_product_is_the_product_and_so_are_its_gradients(vocab_size):
    torch.manual_seed(0)
    head = Head(8, vocab_size)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    weight = torch.randn(2, 5, vocab_size)
    plain = head(hidden)
    padded = padded_product(hidden, head.weight, multiple_of=ALIGNED)
    assert padded.shape == plain.shape
    torch.testing.assert_close(padded, plain)
    given = (hidden, head.weight)
    for found, expected in zip(
        torch.autograd.grad((padded * weight).sum(), given),
        torch.autograd.grad((plain * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
