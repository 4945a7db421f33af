"""Packed batches against documents laid out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.noising import Noising
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(10)  # pad 10, bos 11, eos 12, boi 13, eoi 14
LATENT_SHAPE = (1, 2, 4)  # two patches of side 2


def text(*ids):
    return TextSpan(np.array(ids, np.int32))


def image(value, *, shape=LATENT_SHAPE, **more):
    latent = np.full(shape, value, np.float32)
    given = ImageInput(latent=latent, noise=-latent, **{"timestep": 0, **more})
    return ImageSpan(1, 2, given)


def build(sequences, *, sequence_length=10, image_slots=3, text_rows=12, conditions=False):
    return assemble(
        sequences,
        layout=SequenceLayout(patch_size=2),
        special=SPECIAL,
        sequence_length=sequence_length,
        image_slots=image_slots,
        text_rows=text_rows,
        latent_shape=LATENT_SHAPE,
        conditions=conditions,
    )


def edit(**target):
    """Source, instruction, target."""
    source = image(0.25, condition=True)
    return Document((source, text(3, 4), image(0.75, timestep=9, **target)))


CAPTIONED = Document((text(1, 2), image(0.5, timestep=7)))
IMAGE_FIRST = Document((image(0.25, timestep=9), text(3)))
PROSE = Document((text(4, 5, 6),), closes=False)


def test_special_ids_follow_the_pieces_so_that_text_cannot_yield_them():
    assert (SPECIAL.pad, SPECIAL.bos, SPECIAL.eos, SPECIAL.boi, SPECIAL.eoi) == (
        10,
        11,
        12,
        13,
        14,
    )
    assert SPECIAL.vocab_size == 15


def test_tokens_targets_and_patches_lie_where_the_hand_drawn_layout_says():
    batch = build([[CAPTIONED], [IMAGE_FIRST, Document((text(7),))]])
    assert batch.token_ids.tolist() == [
        # BOS c1 c2 BOI p p EOI EOS . .
        [11, 1, 2, 13, 10, 10, 14, 12, 10, 10],
        # BOS BOI p p EOI c3 EOS | BOS c7 EOS
        [11, 13, 10, 10, 14, 3, 12, 11, 7, 12],
    ]
    assert batch.image_positions.tolist() == [[4, 5], [12, 13], [20, 20]]
    assert batch.image_weight.tolist() == [1, 1, 0]
    assert batch.timesteps.tolist() == [7, 9, 0]
    assert batch.latents[:, 0, 0, 0].tolist() == [0.5, 0.25, 0]
    assert batch.noise[:, 0, 0, 0].tolist() == [-0.5, -0.25, 0]
    used = int(batch.text_weight.sum())
    pairs = list(
        zip(batch.text_rows[:used].tolist(), batch.text_targets[:used].tolist(), strict=True)
    )
    assert pairs == [
        *[(0, 1), (1, 2), (2, 13), (6, 12)],  # BOI is a target; EOI is not; BOI has none
        *[(10, 13), (14, 3), (15, 12)],  # nothing crosses to the next document
        *[(17, 7), (18, 12)],
    ]
    assert batch.text_weight.tolist() == [1] * 9 + [0] * 3


def test_a_piece_that_was_cut_neither_closes_nor_opens():
    tail = Document((text(7),), opens=False)
    batch = build([[PROSE], [tail]], sequence_length=4)
    assert batch.token_ids.tolist() == [[11, 4, 5, 6], [7, 12, 10, 10]]
    assert batch.text_targets[:4].tolist() == [4, 5, 6, 12]


def test_an_empty_sequence_weighs_nothing_and_sees_itself():
    batch = build([[]])
    assert batch.image_weight.sum() == 0
    assert batch.text_weight.sum() == 0
    assert bool((batch.hi - batch.lo == 1).all())


def test_shapes_depend_on_the_plan_alone():
    full, empty = build([[CAPTIONED], [IMAGE_FIRST]]), build([[], []])
    assert full.lo2 is full.hi2 is full.clean is None
    full, empty = (
        build(rows, sequence_length=16, image_slots=4, conditions=True)
        for rows in ([[edit()], [IMAGE_FIRST]], [[], []])
    )
    for name in full.__dataclass_fields__:
        assert getattr(full, name).shape == getattr(empty, name).shape, name
        assert getattr(full, name).dtype == getattr(empty, name).dtype, name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sequence_length": 7}, "8 positions in a sequence of 7"),
        ({"image_slots": 0}, "1 images for 0 image slots"),
        ({"text_rows": 3}, "4 text targets for 3 text rows"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(settings, words):
    with pytest.raises(ValueError, match=words):
        build([[CAPTIONED]], **settings)


def test_a_latent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="must be"):
        build([[Document((image(1.0, shape=(1, 4, 2)),))]])


def test_the_length_of_a_document_is_what_it_takes_in_the_batch():
    layout = SequenceLayout(patch_size=2)
    for document in (CAPTIONED, IMAGE_FIRST, PROSE):
        batch = build([[document]])
        assert layout.document_length(document) == int((batch.position_ids[0] > 0).sum()) + 1
    with pytest.raises(ValueError, match="multiple of patch_size 2"):
        layout.num_patches(3, 4)


def test_references_are_resolved_in_place():
    planned = Document((text(1), ImageSpan(1, 2, "row 5")))
    resolved = planned.with_images(lambda reference: reference.upper())
    assert resolved.spans[1] == ImageSpan(1, 2, "ROW 5")
    assert resolved.spans[0] is planned.spans[0]


def test_a_batch_moves_as_a_whole():
    assert build([[CAPTIONED]]).to("meta").clean is None
    moved = build([[CAPTIONED]], conditions=True).to("meta")
    assert all(
        getattr(moved, name).device == torch.device("meta") for name in moved.__dataclass_fields__
    )


def test_a_condition_is_there_and_clean_and_has_no_loss():
    batch = build([[edit()], [CAPTIONED]], sequence_length=16, image_slots=4, conditions=True)
    assert batch.clean.tolist() == [True, False, False, False]
    assert batch.image_weight.tolist() == [0, 1, 1, 0]
    assert batch.present.tolist() == [True, True, True, False]
    noised = Noising.of(ObjectiveConfig()).apply(
        batch.latents, batch.noise, batch.timesteps, clean=batch.clean
    )
    assert torch.equal(noised.latents[0], batch.latents[0])
    assert not torch.equal(noised.latents[1], batch.latents[1])


def test_what_needs_second_ranges_is_refused_where_batches_have_none():
    for document in (edit(), Document((image(1.0), text(1), image(1.0, sees="images")))):
        with pytest.raises(ValueError, match="without `conditions`"):
            build([[document]], sequence_length=16)


@st.composite
def edits(draw):
    """Spans, what the last image sees, and other documents around it."""
    span = st.sampled_from(["text", "image", "no text"])
    before = draw(st.lists(span, max_size=4))
    spans = [
        image(0.5, condition=True) if kind == "image" else text(*([7, 8] * (kind == "text")))
        for kind in before
    ]
    sees = draw(st.sampled_from(["all", "nothing", "images", "text"]))
    behind = [text(9)] if draw(st.booleans()) else []
    document = Document((*spans, image(0.75, sees=sees), *behind), opens=draw(st.booleans()))
    around = [CAPTIONED] if draw(st.booleans()) else []
    return before, sees, document, around


@settings(max_examples=200, deadline=None)
@given(edits(), st.sampled_from(["bidirectional", "causal"]))
def test_what_was_dropped_does_not_reach_the_target_through_any_number_of_layers(edited, attention):
    before, sees, document, around = edited
    layout = SequenceLayout(patch_size=2, image_attention=attention)
    batch = assemble(
        [[*around, document, *around]],
        layout=layout,
        special=SPECIAL,
        sequence_length=60,
        image_slots=8,
        text_rows=60,
        latent_shape=LATENT_SHAPE,
        conditions=True,
    )
    lo, hi, lo2, hi2 = (getattr(batch, name)[0].numpy() for name in ("lo", "hi", "lo2", "hi2"))
    keys = np.arange(60)
    visible = (keys >= lo[:, None]) & (keys < hi[:, None])
    visible |= (keys >= lo2[:, None]) & (keys < hi2[:, None])
    assert visible.diagonal().all()
    reach = visible
    for _ in range(4):
        reach = reach @ reach

    start = layout.document_length(CAPTIONED) if around else 0
    at = start + document.opens
    kinds = {}
    for kind in before:
        length = {"text": 2, "image": 4, "no text": 0}[kind]
        kinds |= dict.fromkeys(range(at, at + length), kind)
        at += length
    target = np.arange(at, at + 3)  # BOI and patches
    assert batch.token_ids[0, at] == SPECIAL.boi
    seen = {k for k, kind in kinds.items() if kind == sees.removesuffix("s")}
    if sees == "all":
        seen = set(kinds)
    in_one_range = all(k in seen for k in range(min(seen, default=0), max(seen, default=0) + 1))
    expected = seen if seen and in_one_range else set()
    rest = set(range(at)) - expected - {start}
    for q in target:
        assert not reach[q, sorted(rest)].any()
        assert visible[q, sorted(expected)].all()
        assert not reach[q, at + 3 :].any()
    if attention == "bidirectional":
        assert visible[np.ix_(target[1:], target)].all()
    # What stands first keeps BOS; only where something before it was dropped does it not.
    leading = document.opens and expected and min(expected) == start + 1
    if document.opens:
        assert bool(visible[target[0], start]) == bool(leading or sees == "all")
