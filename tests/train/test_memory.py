"""What saves memory in a step changes nothing else: checkpointed and compiled blocks, a head in chunks."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from tests.tiny import LATENT, model_config
from tests.train.worlds import SPECIAL, MadeUpSource, config, in_world, make_trainee
from transfusion.model.transformer import TransfusionModel
from transfusion.model.unet import ResidualBlock
from transfusion.objective import ChunkedTextLosses, combine, loss_sums
from transfusion.resources import TrainResources
from transfusion.train.blocks import checkpoint_blocks, compile_blocks


def make_model(vocab_size=SPECIAL.vocab_size):
    model = TransfusionModel(model_config(), vocab_size=vocab_size, latent_channels=LATENT[0])
    model.init_weights(0)
    return model


def gradients(model, step=0, **losses):
    batch = MadeUpSource().micro_batch(step, 0)
    model.zero_grad(set_to_none=True)
    chunked = losses.get("chunk_rows") and ChunkedTextLosses(targets=batch.text_targets, **losses)
    output = model(batch, batch.latents, chunked)
    with_z = bool(losses.get("with_z"))
    sums = loss_sums(output, batch, z_loss_weight=0.1 if with_z else 0.0)
    combine(sums, global_lm_count=20, global_image_count=4).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return sums.lm_sum.item(), found


def held_bytes(model):
    """What a forward leaves allocated for the way back."""
    batch = MadeUpSource().micro_batch(0, 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = model(batch, batch.latents)
    assert output.logits.requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


def test_checkpointed_blocks_hold_less_and_give_the_same_gradients_to_the_bit():
    loss, expected = gradients(make_model())
    held = {"none": held_bytes(make_model())}
    for how in ("selective", "full"):
        model = make_model()
        checkpoint_blocks(model.blocks, how)
        assert set(dict(model.named_parameters())) == set(expected)
        held[how] = held_bytes(model)
        found_loss, found = gradients(model)
        assert found_loss == loss
        assert all(torch.equal(found[name], expected[name]) for name in expected), how
    assert held["full"] < 0.4 * held["none"]
    assert held["full"] < held["selective"] < 0.8 * held["none"]


def test_a_sharded_step_with_checkpointed_blocks_is_the_same_to_the_bit(world):
    def step(how):
        resources = TrainResources(activation_checkpointing=how)
        trainee = make_trainee(config(), MadeUpSource(), resources)
        values = trainee.forward_backward(0).values
        return values, [parameter.grad.full_tensor() for parameter in trainee.model.parameters()]

    values, expected = step("none")
    for how in ("selective", "full"):
        found_values, found = step(how)
        assert found_values == values
        assert all(map(torch.equal, found, expected))


def test_compiled_blocks_are_compiled_once_and_compute_the_same():
    """In a process of its own: the checks of shapes that tests have cannot be traced."""
    in_world(1, compare_compiled, "aot_eager")


@pytest.mark.slow
def test_the_compiler_takes_the_blocks():
    in_world(1, compare_compiled, "inductor")


def compare_compiled(backend):
    compare_over_steps("none", backend)
    if backend != "inductor":
        compare_over_steps("full", backend)
        make_one_graph(backend)
    compare_residual(backend)


def compare_over_steps(checkpointing, backend):
    model, plain = make_model(), make_model()
    checkpoint_blocks(model.blocks, checkpointing)
    graphs = graphs_of_steps(model, plain, model.blocks, backend, atol=1e-6, rtol=1e-4)
    # On CPU checkpointed blocks run uncompiled.
    assert (graphs > 0) == (checkpointing == "none")


def compare_residual(backend):
    """Of a U-Net: a graph for each shape there and back, another without gradients."""
    model, plain = make_model(), make_model()
    residual = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(residual) > 3
    # Two levels, either way, each with gradients and without.
    assert graphs_of_steps(model, plain, residual, backend, atol=1e-5, rtol=1e-3) == 8


def graphs_of_steps(model, plain, blocks, backend, *, atol, rtol):
    """Trains and validates compiled beside plain: the graphs of two steps, after which there come no more."""
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(blocks, backend=backend)
    warm = 0
    for step in range(4):
        loss, found = gradients(model, step)
        expected_loss, expected = gradients(plain, step)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=atol, rtol=rtol)
        batch = MadeUpSource().validation(step)
        with torch.no_grad():
            one, other = (made(batch, batch.latents).epsilon for made in (model, plain))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        if step == 1:
            warm = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == warm
    return warm


def make_one_graph(backend):
    """As on CUDA, attention can be traced: what is kept is decided within one graph, and all blocks share it."""
    torch._dynamo.reset()
    counters.clear()
    model, plain = make_model(), make_model()
    checkpoint_blocks(model.blocks, "selective")
    compile_blocks(model.blocks, backend=backend, fullgraph=True)
    positions = torch.arange(8)[None]
    hidden = torch.randn(1, 8, model.config.dim, requires_grad=True)

    def attend(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    made = model.transform(hidden, position_ids=positions, attention=attend)
    expected = plain.transform(hidden, position_ids=positions, attention=attend)
    torch.testing.assert_close(made, expected)
    assert model.config.depth > 1
    assert counters["stats"]["unique_graphs"] == 1
    made.sum().backward()
    expected.sum().backward()
    for one, other in zip(model.blocks.parameters(), plain.blocks.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("with_z", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, 40, 64])
def test_a_head_in_chunks_gives_the_losses_of_the_whole(chunk_rows, with_z):
    model = make_model()
    if with_z:
        batch = MadeUpSource().micro_batch(0, 0)
        sums = loss_sums(model(batch, batch.latents), batch, z_loss_weight=0.1)
        logits = model(batch, batch.latents).logits
        by_hand = 0.1 * (logits.exp().sum(-1).log() ** 2 * batch.text_weight).sum()
        torch.testing.assert_close(sums.z_sum, by_hand)
        combine(sums, global_lm_count=20, global_image_count=4).backward()
        loss = sums.lm_sum.item()
        expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    else:
        loss, expected = gradients(model)
        expected = {name: gradient.clone() for name, gradient in expected.items()}
    found_loss, found = gradients(model, chunk_rows=chunk_rows, with_z=with_z)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_with_a_head_in_chunks_the_logits_of_all_rows_never_exist():
    rows, width, vocab_size = 512, 8, 4096
    head = torch.randn(vocab_size, width, requires_grad=True)
    hidden = torch.randn(rows, width, requires_grad=True)
    targets = torch.arange(rows)

    def largest(run):
        sizes = [0]

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
                made = function(*args, **(kwargs or {}))
                if isinstance(made, torch.Tensor):
                    sizes[0] = max(sizes[0], made.untyped_storage().nbytes())
                return made

        with Watch():
            run().sum().backward()
        return sizes[0]

    whole = largest(lambda: F.cross_entropy(hidden @ head.T, targets, reduction="none"))
    chunked = ChunkedTextLosses(targets=targets, chunk_rows=32)
    most = largest(lambda: chunked(hidden, lambda x: x @ head.T))
    assert whole == 4 * rows * vocab_size
    assert most == 4 * 32 * vocab_size


def test_training_with_a_head_in_chunks_takes_the_steps_of_the_whole(world):
    def values(**changed):
        trainee = make_trainee(config(**changed), MadeUpSource())
        found = trainee.forward_backward(0).values
        return found, trainee.validate()

    expected, expected_held_out = values()
    found, held_out = values(lm_head_chunk_rows=16)
    assert found == pytest.approx(expected, rel=1e-5)
    assert held_out == pytest.approx(expected_held_out, rel=1e-6)
