"""Edits: the cached sampler against the training forward pass, and what the command makes of image and prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import LATENT, NUM_PIECES, QUICK, package_config, tiny_model, tiny_package
from transfusion.diffusion.guidance import guide_edit
from transfusion.diffusion.solvers import make_solver
from transfusion.errors import SpecError
from transfusion.package.format import LineageEntry
from transfusion.package.load import load_package
from transfusion.sample.command import sample_to_files
from transfusion.sample.drawing import draw_noise
from transfusion.sample.engine import generate
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import ImagePart, TextPart
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sampler
from transfusion.sequence.batch import assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, Sight, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)
IDS = (6, 7, 3)
LINEAGE = [
    LineageEntry(
        stage="mixture",
        uses="data_pipelines.mix",
        fingerprint="0",
        digest="0",
        config={"sources": {"edits": {"tokens": "t", "conditions": "earlier_images"}}},
    )
]


def clean(number: int = 2) -> torch.Tensor:
    return torch.randn(LATENT, generator=torch.Generator().manual_seed(number))


def predicted(model, sources, ids, target, timestep: int, sees: Sight, layout) -> torch.Tensor:
    """What a training batch of one edit predicts of its target."""

    def span(latent, **more) -> ImageSpan:
        noise = np.zeros(LATENT, np.float32)
        given = ImageInput(latent=latent.numpy(), noise=noise, **more)
        return ImageSpan(2, 2, given)

    document = Document(
        (
            *(span(source, timestep=0, condition=True) for source in sources),
            TextSpan(np.array(ids, np.int32)),
            span(target, timestep=timestep, sees=sees),
        )
    )
    length = layout.document_length(document)
    batch = assemble(
        [[document]],
        layout=layout,
        special=SPECIAL,
        sequence_length=length,
        image_slots=len(sources) + 1,
        text_rows=length,
        latent_shape=LATENT,
        conditions=True,
    )
    with torch.no_grad():
        return model(batch, batch.latents).epsilon[-1:]


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("num_sources", [1, 2])
def test_an_edit_equals_denoising_by_the_training_forward_pass(
    attention: str, num_sources: int
) -> None:
    """With two scales, in company of another that is longer."""
    model, layout = tiny_model(), SequenceLayout(patch_size=2, image_attention=attention)
    config = package_config(layout=layout)
    params = SamplingParams(
        solver="ddim", num_inference_steps=50, guidance_scale=4.0, image_guidance_scale=1.5,
        seed=5, modalities=("image",),
    )  # fmt: skip
    sources = [clean(i) for i in range(num_sources)]
    prompt = (*(ImagePart(source) for source in sources), TextPart(IDS))
    longer = (ImagePart(clean(9)), TextPart((1, 2, 3, 4, 5, 6)))
    result, _ = generate(model, config, [Request(prompt, params), Request(longer, params)])

    solver = make_solver("ddim", num_steps=50, noise=config.noise)
    state = draw_noise([torch.Generator().manual_seed(5)], LATENT)
    for timestep in solver.timesteps:
        full, of_image, of_nothing = (
            predicted(model, sources, IDS, state[0], round(float(timestep)), sees, layout)
            for sees in ("all", "images", "nothing")
        )
        guided = guide_edit(full, of_image, of_nothing, text_scale=4.0, image_scale=1.5)
        state = solver.step(guided, timestep, state).prev_sample
    torch.testing.assert_close(result.images[0], state[0], atol=2e-3, rtol=2e-3)


def test_what_a_target_lost_sight_of_does_not_change_its_prediction() -> None:
    model, layout = tiny_model(), SequenceLayout(patch_size=2)

    def of(source: int, ids: tuple[int, ...], sees: Sight) -> torch.Tensor:
        return predicted(model, [clean(source)], ids, clean(7), 300, sees, layout)

    everything = of(1, IDS, "all")
    for sees, by_source, by_text in (
        ("all", True, True),
        ("images", True, False),
        ("text", False, True),
        ("nothing", False, False),
    ):
        plain = of(1, IDS, sees)
        assert torch.equal(plain, of(2, IDS, sees)) != by_source
        assert torch.equal(plain, of(1, (1, 2, 4), sees)) != by_text
        assert torch.equal(plain, everything) == (sees == "all")


def test_scales_of_one_are_no_guidance_and_equal_scales_are_one_guidance() -> None:
    model, config = tiny_model(), package_config()
    prompt = (ImagePart(clean()), TextPart(IDS))

    def drawn(scale: float, image_scale: float | None) -> torch.Tensor:
        params = SamplingParams(
            **QUICK, guidance_scale=scale, image_guidance_scale=image_scale, modalities=("image",)
        )
        (result,) = generate(model, config, [Request(prompt, params)])
        return result.images[0]

    assert torch.equal(drawn(1.0, 1.0), drawn(1.0, None))
    torch.testing.assert_close(drawn(3.0, 3.0), drawn(3.0, None), atol=2e-3, rtol=2e-3)
    assert not torch.allclose(drawn(3.0, 1.0), drawn(3.0, None), atol=0.05)


@pytest.mark.parametrize(
    ("prompt", "modalities"),
    [
        ((TextPart(IDS), ImagePart(clean())), ("image",)),
        ((TextPart(IDS),), ("image",)),
        ((ImagePart(clean()), TextPart(IDS)), ("text", "image")),
    ],
)
def test_a_prompt_that_is_no_edit_is_refused(prompt, modalities) -> None:
    params = SamplingParams(**QUICK, image_guidance_scale=1.5, modalities=modalities)
    with pytest.raises(ValueError, match="image_guidance_scale"):
        generate(tiny_model(), package_config(), [Request(prompt, params)])


def test_the_command_edits_a_picture(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "model", lineage=LINEAGE)
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "in.png")
    given = {"prompt": "make it blue", "image": tmp_path / "in.png"}
    quick = {**QUICK, "seed": 3, "guidance_scale": 2.0}

    def made(out: str, **options) -> np.ndarray:
        options = {"params": quick, **options}
        sample_to_files(package, **given, out_dir=tmp_path / out, **options)
        return np.asarray(Image.open(tmp_path / out / "000.png"))

    edited = made("auto")
    assert (edited == made("edit", mode="edit")).all()
    assert (made("closer", params={**quick, "image_guidance_scale": 4.0}) != edited).any()
    sampler = Sampler(load_package(package))
    params = SamplingParams(**quick, image_guidance_scale=1.5, modalities=("image",))
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[..., 0] = 255
    (sample,) = sampler.sample([sampler.request([pixels, "make it blue"], params)])
    assert (sample.images[0] == edited).all()


def test_auto_edits_only_with_a_model_that_was_trained_to(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "model")
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "in.png")
    given = {"image": tmp_path / "in.png", "params": QUICK}
    sample_to_files(package, prompt="a red", out_dir=tmp_path / "out", **given)
    assert {place.suffix for place in (tmp_path / "out").iterdir()} <= {".txt"}
    with pytest.raises(SpecError, match="mode edit needs an image"):
        sample_to_files(package, prompt=" ", out_dir=tmp_path / "out", mode="edit", **given)
