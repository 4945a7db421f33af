"""Key ranges against rules spelled out pair by pair, and against the drawing in the module."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.sequence.ranges import ImagePlace, key_ranges


@st.composite
def sequences(draw):
    """Documents as lists of segments: ("text", n) or ("image", patches, dropped)."""
    text = st.tuples(st.just("text"), st.integers(1, 4))
    image = st.tuples(st.just("image"), st.integers(1, 5), st.booleans())
    documents = draw(st.lists(st.lists(text | image, min_size=1, max_size=4), max_size=4))
    return documents, draw(st.integers(0, 5)), draw(st.sampled_from(["bidirectional", "causal"]))


def _label(documents):
    """For every position: document, image (or None), is it BOI, is its image's caption dropped."""
    labels, lengths, places = [], [], []
    image_id = 0
    for d, document in enumerate(documents):
        start = len(labels)
        for segment in document:
            if segment[0] == "text":
                labels += [(d, None, False, False)] * segment[1]
            else:
                _, patches, dropped = segment
                boi = len(labels)
                keeps = (boi, boi) if dropped else None
                places.append(ImagePlace(boi=boi, num_patches=patches, keeps=keeps))
                labels.append((d, image_id, True, dropped))
                labels += [(d, image_id, False, dropped)] * patches
                labels.append((d, None, False, False))  # EOI
                image_id += 1
        lengths.append(len(labels) - start)
    return labels, lengths, places


def _may_see(labels, q, k, attention):
    if q >= len(labels) or k >= len(labels):
        return q == k
    (q_doc, q_image, q_boi, q_dropped), (k_doc, k_image, k_boi, _) = labels[q], labels[k]
    if q_doc != k_doc:
        return False
    if q_dropped and k_image != q_image:
        return False
    both_patches = q_image is not None and q_image == k_image and not q_boi and not k_boi
    return k <= q or (both_patches and attention == "bidirectional")


@settings(max_examples=150, deadline=None)
@given(sequences())
def test_a_query_sees_exactly_what_the_rules_allow(sequence):
    documents, padding, attention = sequence
    labels, lengths, places = _label(documents)
    n = len(labels) + padding
    ranges = key_ranges(
        document_lengths=lengths, images=places, sequence_length=n, image_attention=attention
    )
    for q in range(n):
        seen = [ranges.lo[q] <= k < ranges.hi[q] for k in range(n)]
        assert seen == [_may_see(labels, q, k, attention) for k in range(n)], q
    assert (ranges.lo2 == ranges.hi2).all()


def test_the_drawing_in_the_module_is_right():
    ranges = key_ranges(
        document_lengths=[7, 2], images=[ImagePlace(boi=2, num_patches=2)], sequence_length=10
    )
    np.testing.assert_array_equal(ranges.lo, [0, 0, 0, 0, 0, 0, 0, 7, 7, 9])
    np.testing.assert_array_equal(ranges.hi, [1, 2, 3, 5, 5, 6, 7, 8, 9, 10])
    np.testing.assert_array_equal(ranges.position_ids, [0, 1, 2, 3, 4, 5, 6, 0, 1, 0])


def test_a_dropped_caption_leaves_the_image_with_boi_and_its_patches():
    ranges = key_ranges(
        document_lengths=[7],
        images=[ImagePlace(boi=2, num_patches=2, keeps=(2, 2))],
        sequence_length=7,
    )
    np.testing.assert_array_equal(ranges.lo, [0, 0, 2, 2, 2, 0, 0])
    np.testing.assert_array_equal(ranges.hi, [1, 2, 3, 5, 5, 6, 7])


def seen(ranges):
    """The keys of each query as ones and dots, like the drawings in the module."""
    return [
        "".join("1" if low <= k < high or low2 <= k < high2 else "." for k in range(len(ranges.lo)))
        for low, high, low2, high2 in zip(ranges.lo, ranges.hi, ranges.lo2, ranges.hi2, strict=True)
    ]


def test_an_edit_that_lost_its_instruction_sees_the_image_in_a_range_of_its_own():
    target = ImagePlace(boi=5, num_patches=1, keeps=(0, 4))
    ranges = key_ranges(
        document_lengths=[7],
        images=[ImagePlace(boi=1, num_patches=1), target],
        sequence_length=7,
    )
    assert seen(ranges) == [
        "1......", "11.....", "111....", "1111...", "11111..", "1111.1.", "1111.11",
    ]  # fmt: skip


def test_an_edit_that_lost_its_image_sees_an_instruction_that_did_not_see_it_either():
    target = ImagePlace(boi=5, num_patches=1, keeps=(4, 5))
    ranges = key_ranges(
        document_lengths=[7],
        images=[ImagePlace(boi=1, num_patches=1), target],
        sequence_length=7,
    )
    assert seen(ranges)[4:] == ["....1..", "....11.", "....111"]
    assert (ranges.lo2 == ranges.hi2).all()
