"""The model against Llama, against its own cache, and against every leak that packing could bring."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from transfusion.diffusion.schedules import add_noise, noise_path
from transfusion.model.attention import plan_attention
from transfusion.model.cache import PagedCache, Queries, RaggedStep
from transfusion.model.config import ModelConfig
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums


def noised(batch):
    return add_noise(batch.latents, batch.noise, batch.timesteps, noise_path("cosine"))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_on_plain_text_it_is_llama():
    config = ModelConfig(dim=48, depth=3, num_heads=6, num_kv_heads=2, ffn_dim=80, query_block=16)
    ours = TransfusionModel(config, vocab_size=50, latent_channels=4)
    ours.init_weights(seed=0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_theta=10_000.0,
            tie_word_embeddings=False,
        )
    ).eval()
    theirs = llama.model
    theirs.embed_tokens.weight.copy_(ours.embedding.weight)
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        q, k, v = block.attention.qkv.weight.split([48, 16, 16])
        gate, up = block.ffn.gate_up.weight.chunk(2)
        for target, source in [
            (layer.self_attn.q_proj, q),
            (layer.self_attn.k_proj, k),
            (layer.self_attn.v_proj, v),
            (layer.self_attn.o_proj, block.attention.out.weight),
            (layer.mlp.gate_proj, gate),
            (layer.mlp.up_proj, up),
            (layer.mlp.down_proj, block.ffn.out.weight),
        ]:
            target.weight.copy_(source)
    llama.lm_head.weight.copy_(ours.head.weight)
    ids = torch.randint(50, (2, 37), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(37).expand(2, 37)
    hidden = ours.transform(
        ours.embed_tokens(ids),
        position_ids=positions,
        attention=plan_attention(torch.zeros_like(positions), positions + 1, query_block=16),
    )
    logits = ours.logits(hidden.flatten(0, 1)).unflatten(0, (2, 37))
    close(logits, llama(ids).logits)


@torch.no_grad()
def test_a_packed_document_gives_what_it_gives_alone(model, document, pack):
    first, second = document("interleaved", 1), document("captioned", 2)
    packed = pack([[document("text", 3), first], [second, document("dropped", 4)]])
    together = model(packed, noised(packed))
    for picked, rows, slots in [
        (first, slice(8, 16), slice(0, 2)),
        (second, slice(16, 22), slice(2, 3)),
    ]:
        alone = pack([[picked]])
        output = model(alone, noised(alone))
        used = int(alone.text_weight.sum())
        images = int(alone.image_weight.sum())
        assert packed.text_targets[rows].tolist() == alone.text_targets[:used].tolist()
        close(together.logits[rows], output.logits[:used])
        close(together.epsilon[slots], output.epsilon[:images])


@torch.no_grad()
def test_no_query_feels_what_it_may_not_see(linear_model, mixed_batch):
    """Changes the vector at each position in turn, and compares who moved with the ranges."""
    batch, model = mixed_batch, linear_model
    sequences, positions = batch.token_ids.shape
    attend = plan_attention(batch.lo, batch.hi, query_block=5)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sequences, positions, 32, generator=generator)

    def run(x):
        return model.transform(x, position_ids=batch.position_ids, attention=attend)

    before = run(hidden)
    reach = (torch.arange(positions) >= batch.lo[..., None]) & (
        torch.arange(positions) < batch.hi[..., None]
    )
    two_layers = (reach.float() @ reach.float()) > 0
    for k in range(positions):
        changed = hidden.clone()
        changed[:, k] += 1.0
        moved = (run(changed) - before).abs().amax(-1) > 1e-6
        assert torch.equal(moved, two_layers[:, :, k]), k


@torch.no_grad()
def test_an_image_whose_caption_was_dropped_sees_its_boi_and_itself_alone(model, document, pack):
    dropped, free = document("dropped", 1), document("captioned", 1)
    other = document("dropped", 1)
    other.spans[0].ids[:] = (other.spans[0].ids + 1) % 20
    a, b, c = (pack([[d]]) for d in (dropped, other, free))
    noise_a, noise_b, noise_c = (model(x, noised(x)).epsilon[0] for x in (a, b, c))
    close(noise_a, noise_b)
    assert (noise_a - noise_c).abs().max() > 1e-3

    # The sampler's null prefix is exactly BOI.
    encoded = model.encode_images(noised(a)[:1], a.timesteps[:1])
    boi = model.embed_tokens(a.token_ids[:1, 5:6])
    hidden = torch.cat([boi, encoded.patches], dim=1)
    positions = torch.arange(5)[None]
    null = model.transform(
        hidden,
        position_ids=positions,
        attention=plan_attention(
            torch.zeros_like(positions), torch.tensor([[1, 5, 5, 5, 5]]), query_block=8
        ),
        images=torch.arange(1, 5),
    )
    close(model.decode_images(null[:, 1:], a.timesteps[:1], encoded)[0], noise_a)


@torch.no_grad()
def test_unused_slots_rows_and_padding_change_nothing(model, document, pack):
    sequences = [[document("captioned", 1), document("text", 2)]]
    tight = pack(sequences, sequence_length=21, image_slots=1, text_rows=14)
    roomy = pack(sequences, sequence_length=64, image_slots=5, text_rows=40)
    a, b = model(tight, noised(tight)), model(roomy, noised(roomy))
    close(b.logits[:14], a.logits)
    close(b.epsilon[:1], a.epsilon)
    assert bool(torch.isfinite(b.logits).all())
    assert bool(torch.isfinite(b.epsilon).all())


def test_every_weight_has_a_gradient_and_only_used_slots_matter(model, mixed_batch):
    def gradients(batch):
        model.zero_grad()
        sums = loss_sums(model(batch, noised(batch)), batch)
        combine(sums, global_lm_count=sums.lm_count, global_image_count=sums.image_count).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    before = gradients(mixed_batch)
    assert all(bool(gradient.abs().sum() > 0) for gradient in before.values())
    used = mixed_batch.image_weight.bool()
    other = dataclasses.replace(
        mixed_batch,
        latents=torch.where(used[:, None, None, None], mixed_batch.latents, 5.0),
        noise=torch.where(used[:, None, None, None], mixed_batch.noise, -3.0),
    )
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradient, before[name], rtol=1e-5, atol=1e-6, msg=name)


@torch.no_grad()
def test_the_timestep_reaches_the_prediction_one_step_apart(model, document, pack):
    batch = pack([[document("captioned", 1)]], image_slots=1)
    noisy = noised(batch)
    times = [dataclasses.replace(batch, timesteps=torch.tensor([t])) for t in (500, 501, 900)]
    at_500, at_501, at_900 = (model(b, noisy).epsilon for b in times)
    assert (at_501 - at_500).abs().max() > 1e-6
    assert (at_900 - at_500).abs().max() > 1e-3


@pytest.mark.parametrize("together", [True, False])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence(model, document, pack, together):
    """Text token by token, then an image in one step, sequences of different lengths in one step."""
    batches = [pack([[document(kind, 5)]], image_slots=1) for kind in ("captioned", "dropped")]
    full = [model(batch, noised(batch)) for batch in batches]
    cache = PagedCache.allocate(model.config, num_slots=40)
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    full_slots, null_slots = mixed[:10], mixed[10:15]

    # One row reads BOS c1..c4 BOI (6 positions). The other is the guidance null: BOI alone.
    ids = batches[0].token_ids[0, :6]
    for columns in (slice(0, 1), slice(1, 4), slice(4, 6)):  # a token, a few, the rest
        num = columns.stop - columns.start
        queries = [
            Queries(slots=full_slots[: columns.stop], num=num, hi=1 + torch.arange(6)[columns])
        ]
        read, positions = ids[columns], torch.arange(6)[columns]
        if columns.start == 0:
            queries.append(Queries(slots=null_slots[:1], num=1))
            read, positions = torch.cat([read, ids[5:]]), torch.tensor([0, 5])
        hidden = model.transform(
            model.embed_tokens(read[None]),
            position_ids=positions[None],
            attention=RaggedStep.plan(cache, queries, together=together),
        )
        if columns.start == 1:
            close(model.logits(hidden[0]), full[0].logits[1:4])

    # Two denoising steps on the same slots: the second must not see the first.
    positions = torch.arange(6, 10).repeat(2)
    for noisy, times in [
        (torch.randn(1, 3, 4, 4), torch.tensor([999])),
        (noised(batches[0])[:1], batches[0].timesteps),
    ]:
        encoded = model.encode_images(noisy, times).of(torch.tensor([0, 0]))
        queries = [Queries(slots=slots, num=4) for slots in (full_slots, null_slots)]
        hidden = model.transform(
            encoded.patches.flatten(0, 1)[None],
            position_ids=positions[None],
            attention=RaggedStep.plan(cache, queries, together=together),
            images=torch.arange(8),
        )
        epsilon = model.decode_images(hidden.view(2, 4, -1), times.repeat(2), encoded)
    # Documents of one seed hold the same image, so the null branch is the dropped document's.
    assert torch.equal(batches[0].latents, batches[1].latents)
    close(epsilon[0], full[0].epsilon[0])
    close(epsilon[1], full[1].epsilon[0])


def test_weights_come_from_the_seed_and_the_name_alone(model):
    def weights(seed, device="cpu"):
        with torch.device(device):
            fresh = TransfusionModel(model.config, vocab_size=25, latent_channels=3)
        if device == "meta":
            fresh.to_empty(device="cpu")
        torch.manual_seed({"cpu": 1, "meta": 2}[device])
        fresh.init_weights(seed)
        return fresh.state_dict()

    first, again, other = weights(1), weights(1, device="meta"), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_untrained_model_guesses_evenly_and_predicts_little_noise(mixed_batch):
    config = ModelConfig(dim=64, depth=4, num_heads=4)
    fresh = TransfusionModel(config, vocab_size=25, latent_channels=3)
    fresh.init_weights(seed=0)
    sums = loss_sums(fresh(mixed_batch, noised(mixed_batch)), mixed_batch)
    assert float(sums.lm_sum / sums.lm_count) == pytest.approx(
        torch.tensor(25.0).log().item(), abs=0.1
    )
    assert float(sums.diffusion_sum / sums.image_count) == pytest.approx(1.0, abs=0.3)


@torch.no_grad()
def test_in_half_precision_the_model_runs_and_stays_near(model, mixed_batch):
    exact = model(mixed_batch, noised(mixed_batch))
    half = model.bfloat16()(mixed_batch, noised(mixed_batch))
    assert half.epsilon.dtype == torch.float32
    for got, expected in zip(half[:2], exact[:2], strict=True):
        error = (got.float() - expected).square().mean() / expected.square().mean()
        assert float(error) < 1e-3
