"""The cached sampler against the training forward pass, which caches nothing."""

import numpy as np
import pytest
import torch

from tests.tiny import LATENT, NUM_PIECES, hidden_behind, package_config, tiny_model
from transfusion.diffusion.config import NoiseConfig
from transfusion.diffusion.guidance import guide
from transfusion.diffusion.schedules import alphas_cumprod
from transfusion.diffusion.solvers import make_solver
from transfusion.model.transformer import TransfusionModel
from transfusion.sample.drawing import draw_noise
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart
from transfusion.sample.rows import Request
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def text(*ids: int) -> TextSpan:
    return TextSpan(np.array(ids, np.int32))


def image(latent: torch.Tensor, *, timestep: int = 0, drop: bool = False) -> ImageSpan:
    given = ImageInput(
        latent=latent.numpy(),
        noise=np.zeros(LATENT, np.float32),
        timestep=timestep,
        sees="nothing" if drop else "all",
    )
    return ImageSpan(2, 2, given)


def layout_of(model: TransfusionModel, **options: str) -> SequenceLayout:
    return SequenceLayout(patch_size=2, time_token=model.config.time_token, **options)


def forward(model, spans, *, layout=None):
    """One document, unpadded and alone: targets, logits at them, noise of its images."""
    layout = layout or layout_of(model)
    document = Document(tuple(spans))
    length = layout.document_length(document)
    images = sum(isinstance(span, ImageSpan) for span in spans)
    batch = assemble(
        [[document]],
        layout=layout,
        special=SPECIAL,
        sequence_length=length,
        image_slots=max(images, 1),
        text_rows=length,
        latent_shape=LATENT,
    )
    with torch.no_grad():
        output = model(batch, batch.latents)
    targets = batch.text_weight.bool()
    return batch.text_targets[targets], output.logits[targets], output.epsilon


VARIANTS = {
    "unet": {},
    "linear": {"adapter": "linear"},
    "normed": {"qk_norm": "rms", "norm": "post"},
    "by-modality": {"adapter": "linear", "weights": "by_modality"},
    "monoformer": {"adapter": "linear", "time_embedding": "token", "image_head": "adaln"},
    "all": {
        "adapter": "linear",
        "time_embedding": "token",
        "weights": "by_modality",
        "qk_norm": "rms",
        "patch_positions": "sinusoidal_2d",
        "noisy_skip": "gated",
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@torch.no_grad()
def test_reading_into_the_cache_equals_the_full_forward_pass(variant: str, attention: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    layout = layout_of(model, image_attention=attention)
    config = package_config(layout=layout)
    first, second = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(1))
    spans = [text(3, 4, 5), image(first), text(6), image(second), text(7, 8)]
    expected = forward(model, spans, layout=layout)[1][-1]
    short = forward(model, [text(3, 4)], layout=layout)[1][-1]

    parts = [
        TextPart((SPECIAL.bos, 3, 4, 5)), ImagePart(first), TextPart((6,)), ImagePart(second),
    ]  # fmt: skip
    hidden = hidden_behind(model, config, [TextPart((SPECIAL.bos, 3))], [TextPart((4,))])
    torch.testing.assert_close(model.logits(hidden[None])[0], short, **CLOSE)
    for steps in (
        [parts, [TextPart((7,))], [TextPart((8,))]],
        [[*parts, TextPart((7, 8))]],
        [parts[:1], parts[1:2], parts[2:], [TextPart((7, 8))]],
    ):
        hidden = hidden_behind(model, config, *steps)
        torch.testing.assert_close(model.logits(hidden[None])[0], expected, **CLOSE)


NOISES = [
    NoiseConfig(),
    NoiseConfig(target="v"),
    NoiseConfig(schedule="straight", target="flow", timestep_shift=2.0),
]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.target)
def test_drawing_equals_denoising_by_the_training_forward_pass(
    noise: NoiseConfig, scale: float
) -> None:
    drawing_equals_denoising(tiny_model(), noise, scale)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_draws_as_it_was_trained(variant: str) -> None:
    drawing_equals_denoising(tiny_model(**VARIANTS[variant]), NoiseConfig(), 3.0)


def drawing_equals_denoising(model: TransfusionModel, noise: NoiseConfig, scale: float) -> None:
    config = package_config(**noise.resolved(), layout=layout_of(model))
    params = SamplingParams(
        solver="ddim", num_inference_steps=50, guidance_scale=scale, seed=5, modalities=("image",)
    )
    clean = torch.randn(LATENT, generator=torch.Generator().manual_seed(2))
    prompt = (TextPart((3, 4, 5)), ImagePart(clean), TextPart((6, 7)))
    (result,) = generate(model, config, [Request(prompt, params)])

    solver = make_solver("ddim", num_steps=50, noise=noise)
    state = draw_noise([torch.Generator().manual_seed(5)], LATENT)
    for timestep in solver.timesteps:
        before = [text(3, 4, 5), image(clean), text(6, 7)]
        now = {"timestep": round(float(timestep))}
        epsilon = forward(model, [*before, image(state[0], **now)])[2][1:]
        if scale != 1:
            # What training shows where the caption is dropped: nothing before BOI.
            null = forward(model, [*before, image(state[0], **now, drop=True)])[2][1:]
            epsilon = guide(epsilon, null, scale)
        state = solver.step(epsilon, timestep, state).prev_sample
    torch.testing.assert_close(result.images[0], state[0], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(
        state[0], draw_noise([torch.Generator().manual_seed(5)], LATENT)[0], atol=0.1
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_interleaved_greedy_generation_is_what_the_full_forward_pass_would_choose(
    variant: str,
) -> None:
    model = tiny_model(**VARIANTS[variant])
    config = package_config(layout=layout_of(model))
    with torch.no_grad():
        model.head.weight[SPECIAL.eos] = 0
        model.head.weight[SPECIAL.boi] *= 3  # drawn often, not always
    params = SamplingParams(
        solver="dpm++", num_inference_steps=10, temperature=0.0, max_tokens=6, max_images=2
    )
    requests = [
        Request((TextPart(ids),), params) for ids in [(3, 4), (9, 1, 2, 20), (5,), (11, 12)]
    ]
    results = generate(model, config, requests)
    assert sum(len(result.images) for result in results) >= 2
    for request, result in zip(requests, results, strict=True):
        spans = []
        for part in (*request.prompt, *result.parts):
            spans.append(text(*part.ids) if isinstance(part, TextPart) else image(part.latent))
        merged = [spans[0]]
        for span in spans[1:]:
            if isinstance(span, TextSpan) and isinstance(merged[-1], TextSpan):
                merged[-1] = text(*merged[-1].ids, *span.ids)
            else:
                merged.append(span)
        targets, logits, _ = forward(model, merged)
        logits[:, [SPECIAL.pad, SPECIAL.bos, SPECIAL.eoi]] = -torch.inf
        drawn = (targets == SPECIAL.boi).cumsum(0) - (targets == SPECIAL.boi).long()
        logits[drawn >= params.max_images, SPECIAL.boi] = -torch.inf
        generated = slice(len(request.prompt[0].ids), None)
        chosen = logits[generated].argmax(dim=-1)[:-1]
        assert chosen.tolist() == targets[generated].tolist()[:-1]
        assert result.num_tokens == 6


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "unipc"])
def test_a_request_gets_the_same_answer_alone_as_in_company(solver: str) -> None:
    model, config = tiny_model(), package_config()

    def request(seed: int, *ids: int, modalities=("text", "image")) -> Request:
        params = SamplingParams(
            solver=solver, num_inference_steps=100, seed=seed, max_tokens=5, modalities=modalities
        )
        return Request((TextPart(ids),), params)

    requests = [
        request(1, 3, modalities=("image",)),
        request(2, 4, 5, 6, 7, 8, modalities=("image",)),
        request(3, 9, 9, modalities=("text",)),
        request(1, 3, 30, 2),
    ]
    together = generate(model, config, requests)
    for one, among in zip(requests, together, strict=True):
        (alone,) = generate(model, config, [one])
        assert len(alone.parts) == len(among.parts)
        for a, b in zip(alone.parts, among.parts, strict=True):
            if isinstance(a, TextPart):
                assert a == b
            else:
                torch.testing.assert_close(a.latent, b.latent, atol=1e-3, rtol=1e-3)


def test_another_seed_draws_another_image() -> None:
    model, config = tiny_model(), package_config()
    params = [
        SamplingParams(solver="dpm++", num_inference_steps=10, seed=s, modalities=("image",))
        for s in (0, 1, 0)
    ]
    a, b, again = (
        r.images[0]
        for r in generate(model, config, [Request((TextPart((3,)),), p) for p in params])
    )
    assert (a - b).abs().max() > 0.5
    torch.testing.assert_close(a, again, **CLOSE)


def test_noise_tables_are_those_of_training() -> None:
    expected = alphas_cumprod("cosine", 1000)
    torch.testing.assert_close(make_solver("ddim", num_steps=50).alphas_cumprod, expected)
