"""Clean copies: what may be seen spelled out pair by pair, positions, targets and slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.ranges import ImagePlace, key_ranges
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(100)
LATENT = (1, 2, 4)
LENGTH, SLOTS = 100, 24


def image(number, *, sees="all", condition=False, copied=False):
    """An image that is told by its number: in its latent, its noise and its timestep."""
    latent = np.full(LATENT, number, np.float32)
    given_ = ImageInput(
        latent=latent, noise=-latent, timestep=10 * number, sees=sees, condition=condition
    )
    return ImageSpan(1, 2, given_, copied=copied)


@st.composite
def documents(draw, first_number):
    """Texts, also empty ones, and images; or edits, whose last image loses sight of one thing or another."""
    kinds = draw(st.lists(st.sampled_from(["text", "text", "image", "no text"]), max_size=6))
    is_edit = draw(st.booleans())
    last = max((i for i, kind in enumerate(kinds) if kind == "image"), default=-1)
    spans = []
    for at, kind in enumerate(kinds):
        if kind != "image":
            length = draw(st.integers(1, 3)) if kind == "text" else 0
            spans.append(TextSpan(np.arange(1, 1 + length, dtype=np.int32)))
            continue
        is_condition = is_edit and at < last
        sights = ["all", "nothing", *(["images", "text"] * is_edit)]
        sees = "all" if is_condition else draw(st.sampled_from(sights))
        is_seen = any(behind in ("text", "image") for behind in kinds[at + 1 :])
        number = first_number + at
        copied = is_seen and not is_condition
        spans.append(image(number, sees=sees, condition=is_condition, copied=copied))
    # A piece of nothing is none.
    opens = draw(st.booleans()) or not {"text", "image"} & set(kinds)
    return Document(tuple(spans), opens=opens, closes=draw(st.booleans()))


@st.composite
def sequences(draw):
    count = draw(st.integers(0, 2))
    return [draw(documents(1 + 10 * number)) for number in range(count)]


def spell_out(sequence, block):
    """(document, role, image, span) of every position, and what each image keeps of what stands before it."""
    labels, keeps, floors = [], {}, {}
    for number, document in enumerate(sequence):
        start = len(labels)
        labels += [(number, "bos", None, None)] * document.opens
        stood = []  # (kind, positions) of the spans that are not empty
        for at, span in enumerate(document.spans):
            first = len(labels)
            if isinstance(span, TextSpan):
                labels += [(number, "text", None, at)] * len(span.ids)
                if len(span.ids):
                    stood.append(("text", set(range(first, len(labels)))))
                continue
            name = int(span.reference.latent.flat[0])
            labels += [(number, "boi", name, at), *[(number, "patch", name, at)] * block]
            labels.append((number, "eoi", None, at))
            keeps[name] = kept_of(span, stood, start, first)
            if span.reference.sees in ("text", "images") and keeps[name]:
                floors |= dict.fromkeys(keeps[name], min(keeps[name]))
            stood.append(("images", set(range(first, len(labels)))))
        labels += [(number, "eos", None, None)] * document.closes
        for span in document.spans:
            if not isinstance(span, TextSpan) and span.copied:
                name = int(span.reference.latent.flat[0])
                labels += [(number, "twin", name, None)] * block
    return labels, keeps, floors


def kept_of(span, stood, start, boi):
    sees = span.reference.sees
    if sees == "all":
        return set(range(start, boi))
    chosen = [i for i, (kind, _) in enumerate(stood) if kind == sees]
    if sees == "nothing" or not chosen or chosen != list(range(chosen[0], chosen[-1] + 1)):
        return set()
    if span.copied and chosen[-1] != len(stood) - 1:
        return set()  # its twin would see three stretches
    kept = set().union(*(stood[i][1] for i in chosen))
    return kept if chosen[0] else kept | set(range(start, min(kept)))  # and BOS


def may_see(q, k, labels, keeps, floors, attention):
    if q >= len(labels) or k >= len(labels):
        return q == k
    (q_document, q_role, q_image, _), (k_document, k_role, k_image, _) = labels[q], labels[k]
    if q_document != k_document or k < floors.get(q, 0):
        return False
    together = q_image is not None and q_image == k_image and q_role == k_role
    own_block = together and q_role in ("patch", "twin") and attention == "bidirectional"
    if k_role == "twin":
        return together and (k <= q or own_block)
    if q_role == "twin":
        return k in keeps[q_image] or (k_image == q_image and k_role == "boi")
    if q_role in ("boi", "patch") and k_image != q_image:
        return k < q and k in keeps[q_image]
    return k <= q or own_block


@settings(max_examples=200, deadline=None)
@given(
    sequence=sequences(),
    attention=st.sampled_from(["bidirectional", "causal"]),
    time_token=st.booleans(),
)
def test_a_query_sees_exactly_what_the_rules_allow(sequence, attention, time_token):
    layout = SequenceLayout(image_attention=attention, time_token=time_token, clean_copies=True)
    batch = assembled(sequence, layout)
    block = 2 + time_token
    labels, keeps, floors = spell_out(sequence, block)
    lengths = [layout.document_length(document) for document in sequence]
    assert sum(lengths) == len(labels)
    visible = np.zeros((LENGTH, LENGTH), bool)
    keys = np.arange(LENGTH)
    for lo, hi in ((batch.lo, batch.hi), (batch.lo2, batch.hi2)):
        visible |= (keys >= lo[0].numpy()[:, None]) & (keys < hi[0].numpy()[:, None])
    for q in range(LENGTH):
        expected = [may_see(q, k, labels, keeps, floors, attention) for k in range(LENGTH)]
        assert visible[q].tolist() == expected, (q, labels[q : q + 1])
    # What is counted as work is each pair once.
    pairs = sum(int((hi - lo).sum()) for lo, hi in ((batch.lo, batch.hi), (batch.lo2, batch.hi2)))
    assert pairs == visible.sum()


@settings(max_examples=150, deadline=None)
@given(sequence=sequences(), time_token=st.booleans())
def test_a_twin_has_the_loss_at_the_positions_of_its_copy_and_text_knows_nothing_of_it(
    sequence, time_token
):
    layout = SequenceLayout(time_token=time_token, clean_copies=True)
    batch = assembled(sequence, layout)
    block = 2 + time_token
    labels, _, _ = spell_out(sequence, block)
    places, positions = batch.image_positions, batch.position_ids[0]
    by_name = {}
    for slot in range(int(batch.present.sum())):
        first = int(places[slot, 0])
        assert places[slot].tolist() == list(range(first, first + block))
        _, role, name, _ = labels[first]
        by_name.setdefault(name, {})[role] = slot
        assert float(batch.latents[slot, 0, 0, 0]) == name
    spans = [s for d in sequence for s in d.spans if isinstance(s, ImageSpan)]
    assert len(by_name) == len(spans)
    for span in spans:
        name = int(span.reference.latent.flat[0])
        slots = by_name[name]
        assert set(slots) == ({"patch", "twin"} if span.copied else {"patch"})
        noised = slots["twin" if span.copied else "patch"]
        has_loss = not span.reference.condition
        assert batch.image_weight[noised] == has_loss
        assert bool(batch.clean[noised]) != has_loss
        assert (batch.timesteps[noised], float(batch.noise[noised].min())) == (10 * name, -name)
        if span.copied:
            clean = slots["patch"]
            assert batch.clean[clean]
            assert batch.image_weight[clean] == batch.timesteps[clean] == 0
            assert not batch.noise[clean].any()
            assert positions[places[noised]].tolist() == positions[places[clean]].tolist()
    # Targets are those of the documents without anything behind them.
    wanted = []
    for q, (document, role, _, _) in enumerate(labels[:-1]):
        following = labels[q + 1]
        if role not in ("boi", "patch", "twin") and following[0] == document:
            wanted += [q] * (following[1] != "twin")
    rows = batch.text_rows[batch.text_weight.bool()].tolist()
    assert rows == wanted


def assembled(sequence, layout):
    return assemble(
        [sequence],
        layout=layout,
        special=SPECIAL,
        sequence_length=LENGTH,
        image_slots=SLOTS,
        text_rows=LENGTH,
        latent_shape=LATENT,
    )


def test_the_drawing_in_the_module_is_right():
    ranges = key_ranges(
        document_lengths=[9], images=[ImagePlace(boi=1, num_patches=2, twin=7)], sequence_length=9
    )
    np.testing.assert_array_equal(ranges.lo, [0, 0, 0, 0, 0, 0, 0, 7, 7])
    np.testing.assert_array_equal(ranges.hi, [1, 2, 4, 4, 5, 6, 7, 9, 9])
    np.testing.assert_array_equal(ranges.lo2, [0, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(ranges.hi2, [0, 0, 0, 0, 0, 0, 0, 2, 2])
    np.testing.assert_array_equal(ranges.position_ids, [0, 1, 2, 3, 4, 5, 6, 2, 3])


def test_a_copied_image_is_refused_where_the_layout_has_none():
    document = Document((image(1, copied=True), TextSpan(np.array([5], np.int32))))
    with pytest.raises(ValueError, match="is copied in a layout without `clean_copies`"):
        assembled([document], SequenceLayout())


def test_a_twin_takes_a_slot():
    document = Document((image(1, copied=True), TextSpan(np.array([5], np.int32))))
    with pytest.raises(ValueError, match="2 images for 1 image slots"):
        assemble(
            [[document]],
            layout=SequenceLayout(clean_copies=True),
            special=SPECIAL,
            sequence_length=LENGTH,
            image_slots=1,
            text_rows=LENGTH,
            latent_shape=LATENT,
        )


def test_layouts_without_clean_copies_read_as_they_always_did():
    assert "clean_copies" not in SequenceLayout().resolved()
    assert SequenceLayout(clean_copies=True).resolved()["clean_copies"] is True
