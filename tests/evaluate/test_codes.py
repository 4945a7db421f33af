"""Losses of a model whose images are tokens, by kind of target."""

import numpy as np
import pytest
import torch

from transfusion.evaluate.codes import CodeLayout, LossByKind
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(3, num_codes=2)
IDS = np.array([1, 2, SPECIAL.boi, 8, 9, SPECIAL.eoi], np.int32)


def test_codes_and_text_part_the_language_loss() -> None:
    batch = assemble(
        [[Document((TextSpan(IDS),))]], layout=SequenceLayout(patch_size=1), special=SPECIAL,
        sequence_length=10, image_slots=1, text_rows=9, latent_shape=(1, 1, 2),
    )  # fmt: skip
    torch.manual_seed(0)
    logits = torch.randn(9, SPECIAL.vocab_size)
    by_kind = LossByKind(SPECIAL)
    by_kind.add(logits, batch)
    nats = -logits.log_softmax(1)
    targets = [1, 2, SPECIAL.boi, 8, 9, SPECIAL.eoi, SPECIAL.eos]
    each = [float(nats[row, target]) for row, target in enumerate(targets)]
    found = by_kind.losses()
    assert found["validation.code_loss"] == pytest.approx((each[3] + each[4]) / 2)
    assert found["validation.text_loss"] == pytest.approx((sum(each[:3]) + sum(each[5:])) / 5)
    assert LossByKind(SPECIAL).losses() == {}


def test_a_document_is_parted_into_text_and_images() -> None:
    text, images = CodeLayout(SPECIAL, 1, 2).split([IDS, np.array([0], np.int32)])
    assert text == [1, 2, 0]
    assert [image.tolist() for image in images] == [[[[0, 1]]]]
