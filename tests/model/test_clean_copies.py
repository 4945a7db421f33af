"""A real model with clean copies: text knows nothing of noise, and a twin is the image that stands last."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.model.dense import dense
from tests.tiny import LATENT, NUM_PIECES, tiny_model
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.noising import Noising
from transfusion.model import blockwise
from transfusion.model.attention import plan_attention
from transfusion.model.flops import Work, forward_flops
from transfusion.objective import loss_sums
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.ranges import ImagePlace, key_ranges
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
NOISING = Noising.of(ObjectiveConfig())

VARIANTS = {
    "linear": {"adapter": "linear"},
    "unet": {},
    "by-modality": {"adapter": "linear", "weights": "by_modality"},
    "monoformer": {"adapter": "linear", "time_embedding": "token", "image_head": "adaln"},
    "2d": {"adapter": "linear", "patch_positions": "sinusoidal_2d", "noisy_skip": "gated"},
}


def text(*ids):
    return TextSpan(np.array(ids, np.int32))


def image(seed, *, copied, noise_seed=None, sees="all"):
    """The latent follows from the seed; so do noise and timestep unless they have one of their own."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal(LATENT, dtype=np.float32)
    rng = np.random.default_rng([1, seed if noise_seed is None else noise_seed])
    noise = rng.standard_normal(LATENT, dtype=np.float32)
    given_ = ImageInput(latent=latent, noise=noise, timestep=int(rng.integers(200, 900)), sees=sees)
    return ImageSpan(2, 2, given_, copied=copied)


def assembled(model, sequences, attention="bidirectional", **options):
    layout = SequenceLayout(
        image_attention=attention,
        time_token=model.config.time_token,
        **{"clean_copies": True, **options},
    )
    return assemble(
        [[Document(spans) for spans in row] for row in sequences],
        layout=layout,
        special=SPECIAL,
        sequence_length=90,
        image_slots=10,
        text_rows=90,
        latent_shape=LATENT,
    )


def run(model, sequences, *more, **options):
    batch = assembled(model, sequences, *more, **options)
    noised = NOISING.apply(batch.latents, batch.noise, batch.timesteps, clean=batch.clean)
    with torch.no_grad():
        output = model(batch, noised.latents)
    return batch, output, noised


def logits(batch, output):
    return output.logits[batch.text_weight.bool()]


def page(*, noises=(None, None), sees="all", last=(7, 8)):
    """Text, image, text, image, text: slots 0 and 1 are clean, 2 and 3 their twins."""
    return (
        text(3, 4),
        image(1, copied=True, noise_seed=noises[0]),
        text(5, 6),
        image(2, copied=True, noise_seed=noises[1], sees=sees),
        text(*last),
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_noise_changes_its_twin_and_nothing_else(variant, attention):
    model = tiny_model(**VARIANTS[variant])
    other_document = (text(1, 2), image(3, copied=False))
    before = run(model, [[page(), other_document]], attention)
    after = run(model, [[page(noises=(11, None)), other_document]], attention)
    # Blocks of attention are as they were, so this is to the bit.
    assert torch.equal(logits(*before[:2]), logits(*after[:2]))
    changed = (before[1].epsilon != after[1].epsilon).flatten(1).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_text_and_images_change_no_twin(variant):
    model = tiny_model(**VARIANTS[variant])
    before = run(model, [[page()]])
    after = run(model, [[page(last=(9, 9, 9), sees="nothing")]])
    twin = slice(2, 3)
    torch.testing.assert_close(before[1].epsilon[twin], after[1].epsilon[twin], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("sees", ["all", "nothing"])
def test_a_twin_is_predicted_as_the_same_image_that_stands_last(variant, attention, sees):
    """Which has no twin, and is computed as ever: the same context, the same positions."""
    model = tiny_model(**VARIANTS[variant])
    _, output, noised = run(model, [[page(sees=sees)]], attention)
    alone = (text(3, 4), image(1, copied=False))
    second = (text(3, 4), image(1, copied=True), text(5, 6), image(2, copied=False, sees=sees))
    _, first_last, given_ = run(model, [[alone]], attention, clean_copies=False)
    assert torch.equal(given_.latents[0], noised.latents[2])
    torch.testing.assert_close(output.epsilon[2], first_last.epsilon[0], **CLOSE)
    batch, second_last, given_ = run(model, [[second]], attention)
    assert batch.image_weight.tolist()[:3] == [0, 1, 1]
    assert torch.equal(given_.latents[1], noised.latents[3])
    torch.testing.assert_close(output.epsilon[3], second_last.epsilon[1], **CLOSE)
    # And it does depend on what it sees.
    other = (text(30, 31), *page(sees=sees)[1:])
    moved = run(model, [[other]], attention)[1].epsilon
    assert (moved[2] - output.epsilon[2]).abs().max() > 1e-3
    assert ((moved[3] - output.epsilon[3]).abs().max() > 1e-3) == (sees == "all")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_text_is_predicted_as_behind_images_without_noise(variant, attention):
    """Which is what sampling shows it: see the cached reading against the forward pass."""
    model = tiny_model(**VARIANTS[variant])
    copied = run(model, [[page()]], attention)
    given_as_they_are = tuple(
        ImageSpan(
            2, 2, dataclasses.replace(span.reference, noise=0 * span.reference.noise, timestep=0)
        )
        if isinstance(span, ImageSpan)
        else span
        for span in page()
    )
    batch = assembled(model, [[given_as_they_are]], attention, clean_copies=False)
    with torch.no_grad():
        output = model(batch, batch.latents)
    torch.testing.assert_close(logits(*copied[:2]), logits(batch, output), **CLOSE)


def test_each_image_counts_once_in_the_loss_and_by_its_noise():
    model = tiny_model(adapter="linear")
    batch, output, noised = run(model, [[page()], [(text(1), image(3, copied=False))]])
    sums = loss_sums(output, batch, noised)
    assert float(sums.image_count) == 3
    errors = (output.epsilon - batch.noise).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(sums.diffusion_sum, errors[[2, 3, 4]].sum())
    # BOS, two texts each with BOI or EOS behind, EOI: as without twins.
    assert float(sums.lm_count) == (1 + 6 + 2) + (1 + 1 + 1)


def test_work_is_the_pairs_that_attention_multiplies():
    """With a block for each query the CPU backend takes one slice over both ranges: more than is counted."""
    model = tiny_model(adapter="linear", query_block=1)
    batch, _, _ = run(model, [[page()]])
    work = Work.of(batch)
    assert work.images == 4
    # 2 + 1 before the first BOI, 6 an image, 2 between, 2 and EOS behind: 20 positions; twins of 4 behind.
    causal = 20 * 21 // 2 + 2 * (4 * 3 // 2)
    assert work.key_pairs == causal + 4 * (4 + 4) + 4 * (12 + 4) + (90 - 28)
    told = {"vocab_size": SPECIAL.vocab_size, "latent_shape": LATENT}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch, batch.latents)
    multiplied = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    between = 2 * 4 * 4 * model.config.depth * model.config.dim
    # The slices of both twins reach from the context over what is between: up to the twin itself.
    skipped = (20 - 4) + (24 - 12)
    assert multiplied == forward_flops(model.config, work, **told)["keys"] + skipped * between / 2


@settings(max_examples=30, deadline=None)
@given(
    before=st.integers(1, 600),
    behind=st.integers(1, 600),
    patches=st.integers(1, 40),
    block=st.sampled_from([16, 64, 256]),
)
def test_a_twin_far_behind_what_it_sees_is_attended_right_and_by_its_document_alone(
    before, behind, patches, block
):
    """Also where the slices are too long to be multiplied out."""
    boi, other = 30 + before, 30
    length = before + 1 + patches + behind + patches
    places = [ImagePlace(boi=boi, num_patches=patches, twin=30 + length - patches)]
    total = 30 + length + 30
    ranges = key_ranges(document_lengths=[other, length, 30], images=places, sequence_length=total)
    lo, hi, lo2, hi2 = (
        torch.from_numpy(getattr(ranges, name))[None] for name in ("lo", "hi", "lo2", "hi2")
    )
    attend = plan_attention(lo, hi, query_block=block, backend="blocks", lo2=lo2, hi2=hi2)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, total, 8, generator=generator)
    reference = dense(q, k, v, lo, hi, lo2, hi2)
    torch.testing.assert_close(attend(q, k, v), reference, rtol=1e-4, atol=1e-5)
    # No block reads a key before the documents of its queries.
    starts = torch.repeat_interleave(
        torch.tensor([0, 30, 30 + length]), torch.tensor([30, length, 30])
    )
    for one in blockwise.query_blocks(lo, hi, size=block, second=(lo2, hi2)):
        assert one.keys.start >= int(starts[one.queries].min())
