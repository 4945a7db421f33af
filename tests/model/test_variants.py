"""Variants of the block against other people's models, and weights by modality against shared ones."""

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.model.conftest import (
    CONFIGS,
    LATENT_SHAPE,
    SPECIAL,
    make_batch,
    make_document,
    make_model,
)
from transfusion.model.attention import plan_attention
from transfusion.model.config import ModelConfig
from transfusion.model.images import EncodedImages
from transfusion.model.linear import LinearUp
from transfusion.model.modalities import Rows, each_by_its_own
from transfusion.model.parts import list_parts
from transfusion.model.transformer import TransfusionModel
from transfusion.sequence.batch import assemble
from transfusion.sequence.layout import SequenceLayout

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
}


def qwen3():
    """Queries and keys normalised by head, before the rotation."""
    config = Qwen3Config(**SIZES, num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    return Qwen3ForCausalLM(config), {"num_heads": 6, "num_kv_heads": 2, "qk_norm": "rms"}


def olmo2():
    """What attention and feed-forward add is normalised. Its queries are over all heads, so of one head here."""
    config = Olmo2Config(**SIZES, num_attention_heads=1, num_key_value_heads=1)
    return Olmo2ForCausalLM(config), {"num_heads": 1, "qk_norm": "rms", "norm": "post"}


def take(ours: TransfusionModel, theirs) -> None:
    """Their weights, with gains other than one."""
    for name, parameter in theirs.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
    ours.embedding.weight.copy_(theirs.model.embed_tokens.weight)
    ours.norm.weight.copy_(theirs.model.norm.weight)
    ours.head.weight.copy_(theirs.lm_head.weight)
    for block, layer in zip(ours.blocks, theirs.model.layers, strict=True):
        inner, outer = layer.self_attn, layer.mlp
        matrices = [inner.q_proj.weight, inner.k_proj.weight, inner.v_proj.weight]
        block.attention.qkv.weight.copy_(torch.cat(matrices))
        block.attention.out.weight.copy_(inner.o_proj.weight)
        block.attention.q_norm.weight.copy_(inner.q_norm.weight)
        block.attention.k_norm.weight.copy_(inner.k_norm.weight)
        block.ffn.gate_up.weight.copy_(torch.cat([outer.gate_proj.weight, outer.up_proj.weight]))
        block.ffn.out.weight.copy_(outer.down_proj.weight)
        if block.config.norm == "pre":
            block.attention_norm.weight.copy_(layer.input_layernorm.weight)
            block.ffn_norm.weight.copy_(layer.post_attention_layernorm.weight)
        else:
            block.attention_norm.weight.copy_(layer.post_attention_layernorm.weight)
            block.ffn_norm.weight.copy_(layer.post_feedforward_layernorm.weight)


@pytest.mark.parametrize("made", [qwen3, olmo2])
@torch.no_grad()
def test_normalised_blocks_are_those_of_other_models(made):
    torch.manual_seed(0)
    theirs, options = made()
    config = ModelConfig(dim=48, depth=3, ffn_dim=80, query_block=16, **options)
    ours = TransfusionModel(config, vocab_size=50, latent_channels=4)
    take(ours, theirs.eval())
    ids = torch.randint(50, (2, 37))
    positions = torch.arange(37).expand(2, 37)
    attend = plan_attention(torch.zeros_like(positions), positions + 1, query_block=16)
    hidden = ours.transform(ours.embed_tokens(ids), position_ids=positions, attention=attend)
    logits = ours.logits(hidden.flatten(0, 1)).unflatten(0, (2, 37))
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, theirs(ids).logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"norm": "post"}, {"qk_norm": "rms"}])
@torch.no_grad()
def test_patches_with_a_copy_of_texts_weights_are_patches_of_a_shared_model(mixed_batch, options):
    shared = ModelConfig(dim=32, depth=2, num_heads=4, num_kv_heads=2, query_block=5, **options)
    one = make_model(shared)
    apart = make_model(shared.model_copy(update={"weights": "by_modality"}))
    weights = one.state_dict()
    apart.load_state_dict(
        {
            name: weights[name.replace(".image.", ".").replace("image_norm", "norm")]
            for name in apart.state_dict()
        }
    )
    outputs = (model(mixed_batch, mixed_batch.latents)[:2] for model in (apart, one))
    for got, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_only_images_feel_their_own_weights_and_what_they_say_to_text(document, pack):
    model = make_model(CONFIGS["by-modality"])
    batch = pack([[document("text", 1), document("captioned", 2)], [document("image_first", 3)]])
    before = model(batch, batch.latents)
    for name, parameter in model.named_parameters():
        if "image" in name:
            parameter.mul_(1.1)
    after = model(batch, batch.latents)
    moved = (after.logits - before.logits).abs().amax(-1)
    # Of text, of a caption up to BOI, its EOI; BOS before an image, then EOI and the text behind it.
    before_images, behind = [*range(8 + 5), 14], [13, 15, 16, 17, 18]
    assert moved[before_images].max() == 0
    assert moved[behind].min() > 1e-4
    assert (after.epsilon[:2] - before.epsilon[:2]).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("static", [True, False])
def test_every_row_goes_through_one_function_and_no_row_comes_back_from_the_end(static):
    x = torch.arange(24.0).reshape(2, 6, 2).requires_grad_()
    # Positions 1, 2 and 9; two slots hold none.
    rows = Rows.of(torch.tensor([1, 2, 9, 12, 12]), num_rows=12, static=static)
    assert (rows.text is None) if static else (len(rows.text) == 9)
    out = each_by_its_own(lambda t: t * 10, lambda i: -i, x, rows)
    factors = torch.full((12,), 10.0)
    factors[[1, 2, 9]] = -1.0
    torch.testing.assert_close(out.flatten(0, 1), x.flatten(0, 1) * factors[:, None])
    out.sum().backward()
    torch.testing.assert_close(x.grad.flatten(0, 1), factors[:, None].expand(12, 2))


def test_a_time_token_stands_before_the_patches_and_is_counted():
    layout = SequenceLayout(patch_size=2, time_token=True)
    document = make_document("captioned", seed=1)
    assert layout.document_length(document) == 1 + 4 + (1 + 1 + 4 + 1) + 1
    batch = assemble(
        [[document]],
        layout=layout,
        special=SPECIAL,
        sequence_length=16,
        image_slots=2,
        text_rows=8,
        latent_shape=LATENT_SHAPE,
    )
    # BOS and four of the caption, BOI at 5; the token and its patches see each other.
    assert batch.image_positions.tolist() == [[6, 7, 8, 9, 10], [16] * 5]
    assert batch.hi[0, 5:12].tolist() == [6, 11, 11, 11, 11, 11, 12]
    assert batch.text_rows[batch.text_weight.bool()].tolist() == [0, 1, 2, 3, 4, 11]
    assert "time_token" not in SequenceLayout().resolved()


@torch.no_grad()
def test_the_timestep_reaches_patches_through_the_token_alone():
    model = make_model(ModelConfig(dim=32, depth=2, num_heads=4, time_embedding="token"))
    noisy = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    early, late = (model.encode_images(noisy, torch.tensor([t])).patches for t in (10, 900))
    assert early.shape == (1, 5, 32)
    assert not torch.allclose(early[:, 0], late[:, 0])
    assert torch.equal(early[:, 1:], late[:, 1:])


@torch.no_grad()
def test_the_modulated_head_is_a_norm_shifted_and_scaled_by_the_timestep():
    up = LinearUp(ModelConfig(dim=32, depth=1, num_heads=4, image_head="adaln"), 3)
    hidden, times = torch.randn(2, 4, 32), torch.tensor([3, 700])
    shift, scale = up.modulation(torch.nn.functional.silu(up.time(times))).chunk(2, dim=1)
    centred = hidden - hidden.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    flat = up.project(normed * (1 + scale[:, None]) + shift[:, None])
    patches = flat.unflatten(1, (2, 2)).unflatten(3, (3, 2, 2))
    expected = patches.permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 4, 4)
    got = up(hidden, times, EncodedImages(patches=hidden, skips=(), grid=(2, 2)))
    torch.testing.assert_close(got, expected)


def test_ways_of_the_linear_adapter_are_refused_for_the_other():
    for option in ({"time_embedding": "token"}, {"image_head": "adaln"}):
        with pytest.raises(ValueError, match="the linear adapter's"):
            ModelConfig(dim=32, depth=1, num_heads=4, adapter="unet", **option)


@pytest.mark.parametrize("name", ["normed", "qk-normed", "by-modality", "adaln"])
def test_parameters_by_formula_are_those_of_the_variant(name):
    config = CONFIGS[name]
    with torch.device("meta"):
        model = TransfusionModel(config, vocab_size=SPECIAL.vocab_size, latent_channels=3)
    parts = list_parts(config, vocab_size=SPECIAL.vocab_size, latent_shape=(3, 4, 4))
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())


def test_an_option_that_is_off_is_not_in_the_description():
    described = ModelConfig(dim=32, depth=1, num_heads=2).resolved()
    assert {"qk_norm", "norm", "weights", "image_head"}.isdisjoint(described)
    chosen = ModelConfig(dim=32, depth=1, num_heads=2, norm="post")
    assert ModelConfig.model_validate_json(chosen.model_dump_json()) == chosen


@torch.no_grad()
def test_without_the_transformer_a_unets_noise_knows_no_caption_and_text_is_as_ever():
    """Two captions before one image: its noise is the same under the control alone."""
    documents = [make_document("captioned", 3), make_document("captioned", 3)]
    words = documents[1].spans[0].ids
    documents[1].spans[0].ids[:] = (words + 1) % 20
    batch = make_batch([[document] for document in documents])
    full = make_model(CONFIGS["unet"])
    control = make_model(
        CONFIGS["unet"].model_copy(
            update={"unet": CONFIGS["unet"].unet.model_copy(update={"without_transformer": True})}
        )
    )
    control.load_state_dict(full.state_dict())
    given, alone = full(batch, batch.latents), control(batch, batch.latents)
    torch.testing.assert_close(alone.epsilon[0], alone.epsilon[1], atol=0, rtol=0)
    assert (given.epsilon[0] - given.epsilon[1]).abs().max() > 1e-4
    torch.testing.assert_close(alone.logits, given.logits, atol=0, rtol=0)
