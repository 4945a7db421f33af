"""Learned variances: the bound against torch's distributions, the steps against Gaussians of known variance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.distributions import Normal, kl_divergence

from tests.diffusion.toys import exact, toy_batch
from tests.tiny import LATENT, NUM_PIECES, model_config, package_config, tiny_model
from transfusion.artifacts.canonical import fingerprint
from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig
from transfusion.diffusion.noising import Noising
from transfusion.diffusion.schedules import BETAS, noise_path
from transfusion.diffusion.solvers import make_solver, solver_input
from transfusion.diffusion.targets import TARGETS
from transfusion.diffusion.variance import VarianceRange
from transfusion.model.parts import list_parts
from transfusion.model.transformer import TransfusionModel
from transfusion.objective import combine, loss_sums
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)
LEARNED = [
    NoiseConfig(schedule=schedule, target=target, variance="learned_range")
    for schedule in ("cosine", "linear")
    for target in ("epsilon", "v")
]


def named(noise):
    return f"{noise.schedule}-{noise.target}"


def step_by_bayes(x, clean, alpha, before):
    """Of x_(t-1), known to be near `clean`, once x_t = sqrt(alpha) x_(t-1) + noise is seen: (mean, variance)."""
    variance = 1 / (1 / (1 - before) + alpha / (1 - alpha))
    return variance * (
        before.sqrt() * clean / (1 - before) + alpha.sqrt() * x / (1 - alpha)
    ), variance


@pytest.mark.parametrize("noise", LEARNED, ids=named)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), timestep=st.integers(0, 999), scale=st.sampled_from([0.1, 1, 2]))
def test_the_bound_is_the_divergence_between_the_true_step_and_the_models(
    noise, seed, timestep, scale
):
    generator = torch.Generator().manual_seed(seed)
    latents, drawn, missed, said = torch.randn(
        4, 2, 3, 4, 4, generator=generator, dtype=torch.float64
    )
    missed, said = 0.3 * missed, scale * said
    timesteps = torch.tensor([timestep, 0])
    found = VarianceRange.of(noise).bound(said.float(), missed.float(), timesteps)

    betas = BETAS[noise.schedule](1000).double()
    shares = torch.cumprod(1 - betas, 0)
    for index, t in enumerate(timesteps.tolist()):
        share, x0 = shares[t], latents[index]
        signal, sigma = share.sqrt(), (1 - share).sqrt()
        x = signal * x0 + sigma * drawn[index]
        if noise.target == "epsilon":
            guess = (x - sigma * (drawn[index] + missed[index])) / signal
        else:
            v = signal * drawn[index] - sigma * x0
            guess = signal * x - sigma * (v + missed[index])
        low = step_by_bayes(x, x0, 1 - betas[max(t, 1)], shares[max(t, 1) - 1])[1]
        place = (said[index] + 1) / 2
        std = torch.exp(0.5 * (place * betas[t].log() + (1 - place) * low.log()))
        if t == 0:
            expected = -Normal(guess, std).log_prob(x0)
        else:
            (true, variance), (ours, _) = (
                step_by_bayes(x, clean, 1 - betas[t], shares[t - 1]) for clean in (x0, guess)
            )
            expected = kl_divergence(Normal(true, variance.sqrt()), Normal(ours, std))
        assert float(found[index]) == pytest.approx(
            float(expected.mean()) / math.log(2), rel=1e-3, abs=1e-4
        )


def optimal(noise, t, before, std):
    """What a perfect model would say of the step from t to `before` if the data were N(0, std^2)."""
    share = noise_path(noise.schedule).signal.double().square()
    now, then = share[t], share[before]
    alpha = now / then
    prior, seen = then * std**2 + 1 - then, now * std**2 + 1 - now
    variance = prior - alpha * prior**2 / seen
    low = (1 - alpha) * (1 - then) / (1 - now)
    return 2 * float((variance.log() - low.log()) / ((1 - alpha).log() - low.log())) - 1


@pytest.mark.parametrize("std", [1.0, 0.4])
@pytest.mark.parametrize("num_steps", [100, 250])
@pytest.mark.parametrize("noise", LEARNED, ids=named)
def test_ddpm_with_the_best_variance_draws_the_data(noise, num_steps, std):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, 8, 8, generator=generator)
    path = noise_path(noise.schedule)
    shares = TARGETS[noise.target](path)
    covariance = shares.noise * path.noise + shares.clean * path.signal * std**2
    factor = covariance / (path.signal**2 * std**2 + path.noise**2)
    solver = make_solver("ddpm", num_steps=num_steps, noise=noise)
    times = solver.timesteps.tolist()
    for index, t in enumerate(times):
        is_last = index + 1 == num_steps
        said = 0.0 if is_last else optimal(noise, t, times[index + 1], std)
        prediction = factor[t] * x + 0.02 * torch.randn(x.shape, generator=generator)
        given_ = solver_input("ddpm", prediction, torch.full_like(x, said), is_last=is_last)
        x = solver.step(given_, t, x, generator=generator).prev_sample
    assert float(x.std()) == pytest.approx(std, abs=0.05)
    assert float(x.mean()) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("noise", LEARNED, ids=named)
def test_a_step_of_diffusers_adds_the_variance_that_training_means(noise):
    """Every timestep is taken, so that steps are those of the schedule: the spread is that of `VarianceRange`."""
    solver = make_solver("ddpm", num_steps=1000, noise=noise)
    table = VarianceRange.of(noise)
    for t in (998, 700, 300, 20, 1):
        said = torch.linspace(-1, 1, 5).reshape(1, 5, 1, 1).expand(1, 5, 64, 64)
        x = torch.zeros(1, 5, 64, 64)
        given_ = solver_input("ddpm", x, said, is_last=False)
        steps = [
            solver.step(given_, t, x, generator=torch.Generator().manual_seed(7)).prev_sample
            for _ in range(2)
        ]
        assert torch.equal(*steps)
        unit = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        expected = torch.exp(0.5 * table.log_variance(said, torch.tensor([t]))) * unit
        torch.testing.assert_close(steps[0], expected, rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("noise", LEARNED, ids=named)
def test_the_last_step_adds_nothing_whatever_is_said(noise):
    solver = make_solver("ddpm", num_steps=250, noise=noise)
    last = int(solver.timesteps[-1])
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    prediction = exact(noise)[last] * x
    ends = [
        solver.step(
            solver_input("ddpm", prediction, torch.ones_like(x), is_last=True),
            last,
            x,
            generator=torch.Generator().manual_seed(seed),
        ).prev_sample
        for seed in (0, 1)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-8)


def test_the_straight_schedule_has_no_variance_to_learn():
    with pytest.raises(ValidationError, match="variance must be 'fixed' for schedule 'straight'"):
        NoiseConfig(schedule="straight", target="flow", variance="learned_range")


def made(adapter="unet", skip="gated"):
    config = model_config(adapter, noisy_skip=skip)
    model = TransfusionModel(
        config, vocab_size=SPECIAL.vocab_size, latent_channels=LATENT[0], variance="learned_range"
    )
    model.init_weights(0)
    return model


def losses_of(model, objective, step):
    batch = toy_batch(step, objective)
    noised = Noising.of(objective).apply(batch.latents, batch.noise, batch.timesteps)
    output = model(batch, noised.latents)
    return output, loss_sums(output, batch, noised)


@pytest.mark.parametrize("adapter", ["linear", "unet"])
def test_the_bound_teaches_the_variance_and_never_the_mean(adapter):
    model, objective = made(adapter), ObjectiveConfig(variance="learned_range")
    output, sums = losses_of(model, objective, 0)
    epsilon, variance = torch.autograd.grad(
        sums.bound_sum, [output.epsilon, output.variance], allow_unused=True
    )
    assert epsilon is None
    assert float(variance.abs().min()) > 0
    # Nor does it come to the rows of the last layer that predict the noise, nor to the skip round them.
    _, sums = losses_of(model, objective, 0)
    sums.bound_sum.backward()
    last = model.up.project if adapter == "linear" else model.up.conv_out
    of_noise, of_variance = last.weight.grad.chunk(2)
    assert float(of_noise.abs().max()) == 0
    assert float(of_variance.abs().max()) > 0
    assert float(model.skip.gains.weight.grad.abs().max()) == 0


def test_the_skip_leaves_the_variance_alone():
    model = made()
    noisy = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10, 900])
    encoded = model.encode_images(noisy, times)
    with_skip = model.decode_images(encoded.patches, times, encoded)
    plain = model.up(encoded.patches, times, encoded._replace(skips=encoded.skips[1:]))
    assert torch.equal(with_skip[:, 4:], plain[:, 4:])
    torch.testing.assert_close(with_skip[:, :4], model.skip(plain[:, :4], noisy, times))


@pytest.mark.parametrize("adapter", ["linear", "unet"])
def test_parameters_of_the_variance_are_counted(adapter):
    parts = list_parts(
        model_config(adapter, noisy_skip="gated"),
        vocab_size=SPECIAL.vocab_size,
        latent_shape=LATENT,
        variance="learned_range",
    )
    parameters = sum(parameter.numel() for parameter in made(adapter).parameters())
    assert sum(part.parameters for part in parts) == parameters


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_the_bound_falls_below_that_of_any_fixed_variance(target):
    """Of twenty steps each is large, and the ends of its range lie far apart."""
    objective = ObjectiveConfig(
        target=target, variance="learned_range", num_timesteps=20, noise_limit=20, vlb_weight=0.5
    )
    model = made()

    def held_out(said=None):
        """Of 200 images; by what the model says, or by one thing said of all."""
        total, images = 0.0, 0
        with torch.no_grad():
            for index in range(50):
                batch = toy_batch(10_000 + index, objective)
                noised = Noising.of(objective).apply(batch.latents, batch.noise, batch.timesteps)
                output = model(batch, noised.latents)
                if said is not None:
                    output = output._replace(variance=torch.full_like(output.variance, said))
                sums = loss_sums(output, batch, noised)
                total, images = total + float(sums.bound_sum), images + float(sums.image_count)
        return total / images

    before = held_out()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(150):
        _, sums = losses_of(model, objective, step)
        loss = combine(
            sums,
            global_lm_count=sums.lm_count,
            global_image_count=sums.image_count,
            bound_weight=objective.bound_weight,
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    learned, fixed = held_out(), [held_out(said) for said in (-1.0, 0.0, 1.0)]
    assert learned < before, (learned, before)
    assert learned < min(fixed), (learned, fixed)


def without_variance(model):
    """The same model with the last layer's rows of the variance cut off."""
    plain = TransfusionModel(model.config, vocab_size=SPECIAL.vocab_size, latent_channels=4)
    weights = dict(model.state_dict())
    for name, weight in plain.state_dict().items():
        weights[name] = weights[name][: len(weight)]
    plain.load_state_dict(weights)
    return plain.eval()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("adapter", ["linear", "unet"])
@pytest.mark.parametrize(("solver", "steps"), [("ddim", 50), ("dpm++", 10), ("unipc", 10)])
def test_a_solver_without_noise_draws_as_if_no_variance_were_learned(
    solver, steps, adapter, guidance
):
    model = made(adapter).eval()
    params = SamplingParams(
        solver=solver, num_inference_steps=steps, guidance_scale=guidance, modalities=("image",)
    )
    request = Request((TextPart((3, 4, 5)),), params)
    drawn = [
        generate(one, package_config(variance=variance), [request])[0].images[0]
        for one, variance in ((model, "learned_range"), (without_variance(model), "fixed"))
    ]
    torch.testing.assert_close(*drawn, atol=1e-3, rtol=1e-3)


class Speaking(TransfusionModel):
    """Says no noise in either branch, and of the variance the upper end with a prompt, the lower end without."""

    def decode_images(self, hidden, timesteps, encoded):
        half = len(hidden) // 2
        said = torch.ones(len(hidden), *LATENT)
        said[half:] = -1
        return torch.cat([torch.zeros_like(said), said], dim=1)


def test_guidance_is_of_the_noise_and_the_variance_is_that_of_the_prompt():
    model = Speaking(
        model_config(), vocab_size=SPECIAL.vocab_size, latent_channels=4, variance="learned_range"
    )
    model.init_weights(0)
    params = SamplingParams(
        solver="ddpm", num_inference_steps=100, guidance_scale=4.0, seed=3, modalities=("image",)
    )
    noise = NoiseConfig(variance="learned_range")
    config = package_config(variance="learned_range")
    (latent,) = generate(model.eval(), config, [Request((TextPart((3,)),), params)])[0].images
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, *LATENT, generator=generator)
    solver = make_solver("ddpm", num_steps=100, noise=noise)
    for t in solver.timesteps:
        given_ = torch.cat([torch.zeros_like(x), torch.ones_like(x)], dim=1)
        x = solver.step(given_, t, x, generator=[generator]).prev_sample
    torch.testing.assert_close(latent, x[0], atol=1e-5, rtol=1e-5)


def test_a_fixed_variance_is_as_if_there_were_no_other():
    """Identity, package and drawings are those of the commit before (6d83583)."""
    assert fingerprint(ObjectiveConfig().identity()) == fingerprint({})
    assert "variance" not in package_config().resolved()
    params = SamplingParams(
        solver="ddpm", num_inference_steps=100, guidance_scale=2.0, seed=5, modalities=("image",)
    )
    before = {
        "unet": ({}, [0.73684, 4.007, -4.98173, -2.06333]),
        "linear": ({"noisy_skip": "gated"}, [-1.28316, 0.46853, -0.98418, 0.92846]),
    }
    for adapter, (options, corner) in before.items():
        model = tiny_model(adapter=adapter, **options)
        request = Request((TextPart((3, 4, 5)),), params)
        (latent,) = generate(model, package_config(), [request])[0].images
        assert latent[:, 0, 0].tolist() == pytest.approx(corner, abs=2e-3)
