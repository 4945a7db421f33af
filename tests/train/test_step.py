"""A sharded step over many lanes against plain autograd on the same data."""

import json

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import LATENT, model_config
from tests.train.outcomes import result_file, rows
from tests.train.worlds import (
    SPECIAL,
    MadeUpSource,
    config,
    in_world,
    make_trainee,
    stop_after_four_steps,
    train,
    train_and_keep,
)
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.diffusion.schedules import alphas_cumprod
from transfusion.model.transformer import TransfusionModel
from transfusion.resources import TrainResources
from transfusion.train.measures import GROUPS, group_of
from transfusion.train.parallel import AveragedWeights, lanes_of, local, parameter_groups
from transfusion.train.peaks import peak_tflops
from transfusion.train.schedule import checkpoint_mean_decay, ema_decay, learning_rate
from transfusion.train.state import TrainingState

UNET = model_config("unet")


def plain_training(settings):
    """The same run in a page of plain torch: whole batch, one process, no sharding, no accumulation."""
    source = MadeUpSource()
    model = TransfusionModel(UNET, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0])
    model.init_weights(settings.seed)
    no_decay = [p for n, p in model.named_parameters() if p.ndim < 2 or n == "embedding.weight"]
    decay = [p for n, p in model.named_parameters() if not (p.ndim < 2 or n == "embedding.weight")]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=(0.9, 0.95),
    )
    from diffusers import DDPMScheduler

    noising = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    losses, norms, measures = [], [], []
    stream = []
    model.norm.register_forward_pre_hook(lambda _, given: stream.append(given[0].detach()))
    average = [p.detach().clone() for p in model.parameters()]
    for step in range(settings.steps):
        batches = [source.micro_batch(step, lane) for lane in range(source.lanes)]
        entropy, error, targets, images = 0.0, 0.0, 0.0, 0.0
        noisiest, text, patches = [], [], []
        for batch in batches:
            noisy = noising.add_noise(batch.latents, batch.noise, batch.timesteps)
            output = model(batch, noisy)
            used = batch.text_weight.bool()
            entropy += F.cross_entropy(
                output.logits[used], batch.text_targets[used], reduction="sum"
            )
            targets += used.sum()
            shown = batch.image_weight.bool()
            squares = (output.epsilon[shown] - batch.noise[shown]) ** 2
            error += squares.mean((1, 2, 3)).sum()
            images += shown.sum()
            noisiest += squares[batch.timesteps[shown] >= 750].detach().mean((1, 2, 3)).tolist()
            rows = stream.pop().flatten(0, 1).square().mean(-1)
            text += rows[batch.text_rows[used]].tolist()
            patches += rows[batch.image_positions[shown]].flatten().tolist()
        loss = entropy / targets + 5 * error / images
        optimizer.zero_grad()
        loss.backward()
        feeding = [p.grad.norm() for n, p in model.named_parameters() if ".ffn" in n]
        measures.append(
            {
                "images_t3": len(noisiest),
                "diffusion_loss_t3": sum(noisiest) / len(noisiest) if noisiest else None,
                "grad_norm_ffn": torch.stack(feeding).norm().item(),
                "stream_rms_text": (sum(text) / len(text)) ** 0.5,
                "stream_rms_image": (sum(patches) / len(patches)) ** 0.5,
            }
        )
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        warm = min((step + 1) / settings.warmup_steps, 1)
        after = max(step - settings.warmup_steps, 0) / (settings.steps - 1 - settings.warmup_steps)
        span = settings.lr - settings.min_lr
        rate = settings.min_lr + span * (1 + torch.cos(torch.tensor(torch.pi * after)).item()) / 2
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm if step < settings.warmup_steps else rate
        optimizer.step()
        losses.append(loss.item())
        decay_now = min(settings.ema_decay, (1 + step) / (10 + step))
        for old, new in zip(average, model.parameters(), strict=True):
            old.mul_(decay_now).add_(new.detach(), alpha=1 - decay_now)
    return losses, norms, measures, dict(model.named_parameters()), average


@pytest.fixture(scope="module")
def plain():
    return plain_training(config(model=UNET))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_takes_the_steps_of_plain_torch(world, plain, workers, tmp_path):
    """Three lanes on two workers: one micro-batch of the second worker has weight 0."""
    if workers == 1:
        train_and_keep(tmp_path, "unet")
    else:
        in_world(workers, train_and_keep, tmp_path, "unet")
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    losses, norms, measures, weights, average = plain
    found = rows(tmp_path, outcome)
    assert [row["loss"] for row in found] == pytest.approx(losses, rel=2e-5)
    assert [row["grad_norm"] for row in found] == pytest.approx(norms, rel=1e-4)
    for row, by_hand in zip(found, measures, strict=True):
        assert {name: row.get(name) for name in by_hand} == pytest.approx(by_hand, rel=1e-4)
        groups = [row[f"grad_norm_{group}"] ** 2 for group in GROUPS]
        assert sum(groups) == pytest.approx(row["grad_norm"] ** 2, rel=1e-4)
        levels = [row.get(f"diffusion_loss_t{n}", 0) * row[f"images_t{n}"] for n in range(4)]
        assert sum(levels) == pytest.approx(row["diffusion_loss"] * row["images"], rel=1e-5)
    assert any(row["images_t3"] for row in found)
    final = load(result_file(tmp_path, outcome, "model.safetensors"))
    assert set(final) == set(weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(final[name], tensor, atol=1e-4, rtol=1e-3)
    averaged = load(result_file(tmp_path, outcome, "ema.safetensors"))
    for name, tensor in zip(weights, average, strict=True):
        torch.testing.assert_close(averaged[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "noise",
    [{"target": "v"}, {"schedule": "straight", "target": "flow"}],
    ids=lambda noise: noise["target"],
)
def test_a_step_and_a_validation_are_of_the_target_and_of_its_weights(world, noise):
    objective = ObjectiveConfig(**noise, loss_weighting="min_snr", diffusion_weight=2.0)
    source = MadeUpSource()
    trainee = make_trainee(config(model=UNET, objective=objective), source)
    model = TransfusionModel(UNET, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0])
    model.init_weights(config().seed)

    def by_hand(batches):
        total, images = 0.0, 0.0
        for batch in batches:
            time = batch.timesteps[:, None, None, None] / 999
            if noise["target"] == "flow":
                signal, drawn = 1 - time, time
                target = batch.noise - batch.latents
            else:
                share = alphas_cumprod("cosine")[batch.timesteps][:, None, None, None]
                signal, drawn = share.sqrt(), (1 - share).sqrt()
                target = signal * batch.noise - drawn * batch.latents
            with torch.no_grad():
                made = model(batch, signal * batch.latents + drawn * batch.noise).epsilon
            weight = torch.minimum(signal**2, 5 * drawn**2).flatten()
            errors = (made - target).square().mean((1, 2, 3)) * weight
            total += errors[batch.image_weight.bool()].sum().item()
            images += batch.image_weight.sum().item()
        return total / images

    values = trainee.forward_backward(0).values
    gradients = {n: p.grad.full_tensor() for n, p in trainee.model.named_parameters()}
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    assert float(gradients["up.conv_out.weight"].abs().max()) > 0
    lanes = [source.micro_batch(0, lane) for lane in range(source.lanes)]
    assert values["diffusion_loss"] == pytest.approx(by_hand(lanes), rel=1e-4)
    assert values["loss"] == pytest.approx(values["lm_loss"] + 2 * values["diffusion_loss"])
    held_out = [source.validation(index) for index in range(source.num_validation)]
    assert trainee.validate()["diffusion_loss"] == pytest.approx(by_hand(held_out), rel=1e-4)


def test_a_learned_variance_is_part_of_the_diffusion_loss_and_told_beside_it(world, recwarn):
    objective = ObjectiveConfig(variance="learned_range", diffusion_weight=2.0, vlb_weight=0.004)
    trainee = make_trainee(config(model=UNET, objective=objective), MadeUpSource())
    plain = make_trainee(config(model=UNET), MadeUpSource())
    values, without = trainee.forward_backward(0).values, plain.forward_backward(0).values
    gradient = trainee.model.up.conv_out.weight.grad.full_tensor()
    assert float(gradient[LATENT[0] :].abs().max()) > 0
    assert values.keys() - without.keys() == {"variance_bound"}
    assert not [str(warning.message) for warning in recwarn if "view" in str(warning.message)]
    assert values["variance_bound"] > 0
    assert values["loss"] == pytest.approx(
        values["lm_loss"] + 2 * (values["diffusion_loss"] + 4 * values["variance_bound"])
    )
    held_out = trainee.validate()
    assert held_out["loss"] == pytest.approx(
        held_out["lm_loss"] + 2 * (held_out["diffusion_loss"] + 4 * held_out["variance_bound"])
    )


@pytest.mark.parametrize("peak", [None, 0.5])
def test_a_step_says_how_much_it_computes_and_what_that_is_of_the_peak(world, tmp_path, peak):
    source = MadeUpSource()
    trainee = make_trainee(config(model=UNET), source, TrainResources(peak_tflops=peak))
    result = trainee.forward_backward(0)
    model = TransfusionModel(UNET, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0])
    expected = 0
    for lane in range(source.lanes):
        batch = source.micro_batch(0, lane)
        with FlopCounterMode(display=False) as counter:
            model(batch, batch.latents).epsilon.sum().backward()
        expected += counter.get_total_flops()
    # Unused slots and rows, and the pairs between blocks of queries, are computed but not asked for.
    assert 0.5 * expected < result.flops < expected
    outcome = train(
        tmp_path, settings=config(model=UNET), resources=TrainResources(peak_tflops=peak)
    )
    lines = result_file(tmp_path, outcome, "metrics.jsonl").splitlines()
    timing = next(row["timing"] for row in map(json.loads, lines) if row["kind"] == "train")
    assert timing["tflops_per_s"] == pytest.approx(
        result.flops / timing["step_s"] / 1e12, rel=1e-2, abs=1e-6
    )
    assert ("mfu" in timing) == (peak is not None)
    if peak is not None:
        assert timing["mfu"] == pytest.approx(timing["tflops_per_s"] / peak, abs=3e-6)


def test_a_gpu_is_known_by_its_name_and_what_is_stated_comes_first(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert peak_tflops(cpu) is None
    assert peak_tflops(cpu, 3.5) == 3.5
    for name, peak in [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GB200", 2500.0),
        ("another", None),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_tflops(gpu) == peak
    assert peak_tflops(gpu, 3.5) == 3.5


def test_a_run_that_two_workers_began_is_finished_by_one(world, plain, tmp_path):
    with pytest.raises(Exception, match="InterruptedError"):
        in_world(2, stop_after_four_steps, tmp_path, "unet")
    outcome = train(tmp_path, settings=config(model=UNET))
    assert [row["loss"] for row in rows(tmp_path, outcome)] == pytest.approx(plain[0], rel=2e-5)


@pytest.mark.parametrize("lanes", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_every_lane_is_run_once_and_ranks_run_as_many(lanes, world_size):
    owned = [lanes_of(rank, world_size=world_size, lanes=lanes) for rank in range(world_size)]
    assert len({len(part) for part in owned}) == 1
    assert sorted(lane for part in owned for lane in part if lane is not None) == list(range(lanes))


def test_rate_rises_to_the_peak_and_ends_at_the_lowest():
    rates = [
        learning_rate(step, peak=1.0, lowest=0.1, warmup_steps=4, total_steps=11)
        for step in range(11)
    ]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_average_has_a_short_memory_at_first():
    assert [ema_decay(step, limit=0.99) for step in (0, 1, 90, 10_000)] == [
        0.1, 2 / 11, 0.91, 0.99,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "every", "count", "expected"),
    [(12, 4, 2, [8, 12]), (10, 4, 2, [8, 10]), (10, 4, 1, [10]), (10, 4, 9, [4, 8, 10]), (3, 4, 2, [3])],
)  # fmt: skip
def test_the_mean_of_checkpoints_is_that_of_the_last_ones(steps, every, count, expected):
    weights = [
        float(draw) for draw in torch.rand(steps, generator=torch.Generator().manual_seed(1))
    ]
    average = 0.0
    for step, weight in enumerate(weights):
        decay = checkpoint_mean_decay(step, total_steps=steps, every_steps=every, count=count)
        average = decay * average + (1 - decay) * weight
        if step + 1 < expected[0]:
            assert average == weight
    mean = sum(weights[done - 1] for done in expected) / len(expected)
    assert average == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(("adapter", "alone"), [("unet", True), ("linear", False)])
def test_ways_as_large_as_blocks_are_gathered_by_themselves(world, adapter, alone):
    model = make_trainee(config(model=model_config(adapter)), MadeUpSource()).model
    assert [isinstance(part, FSDPModule) for part in (model.down, model.up)] == [alone, alone]
    assert all(isinstance(block, FSDPModule) for block in model.blocks)


@pytest.mark.parametrize(("warmup", "told"), [(12, "ends at 50% of lr"), (6, "")])
def test_a_run_that_is_all_warm_up_says_so(world, unchecked_shapes, tmp_path, caplog, warmup, told):
    with caplog.at_level("WARNING", "transfusion"):
        outcome = train(tmp_path, settings=config(warmup_steps=warmup, lr=1e-3))
    assert told in caplog.text
    assert bool(told) == bool(caplog.messages)
    assert rows(tmp_path, outcome)[-1]["lr"] == pytest.approx(1e-3 * 6 / warmup)


def test_a_run_averages_its_checkpoints_and_resumes_doing_so(world, tmp_path, monkeypatch):
    saved, as_dict = [], TrainingState.as_dict

    def keep(state):
        saved.append({name: local(w).clone() for name, w in state.model.named_parameters()})
        return as_dict(state)

    settings = config(average_checkpoints=2)
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "as_dict", keep)
        made = result_file(calm, train(calm, settings=settings), "ema.safetensors")
    assert len(saved) == 3
    for name, average in load(made).items():
        torch.testing.assert_close(average, (saved[1][name] + saved[2][name]) / 2)
    with pytest.raises(InterruptedError):
        train(rough, settings=settings, stop_after=5)
    assert result_file(rough, train(rough, settings=settings), "ema.safetensors") == made
    with pytest.raises(ValidationError, match="average_checkpoints 2 needs averaged weights"):
        config(average_checkpoints=2, ema_decay=0.0)


def test_weights_are_exchanged_and_come_back_to_the_bit():
    model = nn.Linear(3, 2)
    averaged = AveragedWeights(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    averaged.update(decay=0.75)
    torch.testing.assert_close(averaged.weights["weight"], before + 0.25)
    trained = model.weight.detach().clone()
    averaged.exchange()
    torch.testing.assert_close(model.weight.detach(), before + 0.25)
    averaged.exchange()
    assert torch.equal(model.weight.detach(), trained)


@pytest.mark.parametrize("weights", ["shared", "by_modality"])
def test_every_weight_is_measured_with_what_it_is_part_of(weights):
    model = TransfusionModel(
        model_config().model_copy(update={"weights": weights}), vocab_size=45, latent_channels=4
    )
    found = {}
    for name, parameter in model.named_parameters():
        found[group_of(name)] = found.get(group_of(name), 0) + parameter.numel()
    assert set(found) == set(GROUPS)
    dim = model.config.dim
    image = 2 if weights == "by_modality" else 1
    assert found["embeddings"] == 45 * dim
    assert found["head"] == 45 * dim + image * dim
    blocks = sum(weight.numel() for weight in model.blocks.parameters())
    assert found["attention"] + found["ffn"] == blocks
    gains = model.config.depth * image * dim
    assert found["ffn"] == model.config.depth * image * 3 * dim * model.config.hidden_dim + gains


def test_norms_biases_and_embeddings_are_not_decayed():
    model = TransfusionModel(UNET, vocab_size=45, latent_channels=LATENT[0])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = parameter_groups(model, weight_decay=0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    left = {names[id(parameter)] for parameter in others["params"]}
    assert "embedding.weight" in left
    assert all("norm" in name or "bias" in name or "embedding" in name for name in left), left
