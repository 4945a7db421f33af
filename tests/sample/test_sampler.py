"""From prompts and pictures to files, with a whole tiny package."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tiny import QUICK, tiny_package
from transfusion.errors import SpecError
from transfusion.package.load import load_package
from transfusion.sample.command import sample_to_files
from transfusion.sample.params import SamplingParams, params_with
from transfusion.sample.sampler import Sampler


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package(tmp_path_factory.mktemp("tiny"))


def params(**changed) -> SamplingParams:
    return SamplingParams(**(QUICK | changed))


def test_a_prompt_becomes_a_picture_of_the_models_size(package: Path) -> None:
    sampler = Sampler(load_package(package))
    request = sampler.request("a red circle", params(modalities=("image",)))
    (sample,) = sampler.sample([request])
    (picture,) = sample.images
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    assert sample.text == ""


def test_text_that_spells_a_special_token_stays_text(package: Path) -> None:
    sampler = Sampler(load_package(package))
    config = sampler.package.config
    for spelling in ("<BOI>", "</s>", "<s>", "<pad>", "<EOI>", "<0x41>"):
        (part,) = sampler.request(spelling, params()).prompt
        assert max(part.ids) < config.num_pieces
        assert sampler.package.tokenizer.decode(part.ids) == spelling


def test_an_image_of_another_size_is_refused(package: Path) -> None:
    sampler = Sampler(load_package(package))
    with pytest.raises(ValueError, match=r"must be 16 x 16 px"):
        sampler.request([np.zeros((8, 16, 3), np.uint8)], params())


def test_a_prompt_longer_than_the_context_is_refused(package: Path) -> None:
    sampler = Sampler(load_package(package))
    with pytest.raises(ValueError, match=r"must be at most 64"):
        sampler.sample([sampler.request("blue " * 100, params())])


def test_files_are_numbered_and_never_overwritten(package: Path, tmp_path: Path) -> None:
    options = {"prompt": "a red circle", "image": None, "out_dir": tmp_path / "out"}
    first = sample_to_files(package, **options, params=params(seed=1))
    second = sample_to_files(package, **options, params=params(seed=2))
    assert [line.split()[0] for line in first + second] == [
        str(tmp_path / "out" / name) for name in ("000.png", "001.png")
    ]
    a, b = (np.asarray(Image.open(tmp_path / "out" / n)) for n in ("000.png", "001.png"))
    assert (a != b).any()


def test_an_image_is_described_in_words(package: Path, tmp_path: Path) -> None:
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(tmp_path / "in.png")
    lines = list(
        sample_to_files(
            package, prompt="", image=tmp_path / "in.png", out_dir=tmp_path / "out", params=params()
        )
    )
    assert [place.suffix for place in (tmp_path / "out").iterdir()] == [".txt"], lines


def test_mistakes_are_told_in_words(package: Path, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>")
    for prompt, image, message in [
        (" ", None, "give a prompt"),
        ("", tmp_path / "none.png", "no such image"),
        ("", tmp_path / "page.png", "cannot be read as an image"),
    ]:
        with pytest.raises(SpecError, match=message):
            list(
                sample_to_files(
                    package, prompt=prompt, image=image, out_dir=tmp_path, params=params()
                )
            )
    with pytest.raises(
        SpecError, match=r"num_inference_steps must be 50 to 1000 for solver 'ddim'"
    ):
        params_with(SamplingParams(), num_inference_steps=5)
    with pytest.raises(SpecError, match=r"one of ddim, dpm\+\+, unipc .* got 'ddpm'"):
        params_with(SamplingParams(), schedule="straight", solver="ddpm", num_inference_steps=250)


def test_what_is_not_chosen_is_the_packages_default(tmp_path: Path) -> None:
    from transfusion.package.config import SamplingDefaults

    quick = SamplingDefaults(solver="dpm++", num_inference_steps=10)
    package = tiny_package(tmp_path, sampling=quick)
    for mode, suffixes in [("auto", {".png"}), ("text", {".txt"})]:
        out = tmp_path / mode
        sample_to_files(
            package,
            prompt="a red circle",
            image=None,
            out_dir=out,
            params={"solver": None, "max_tokens": 4},
            mode=mode,
        )
        assert {place.suffix for place in out.iterdir()} == suffixes
    with pytest.raises(SpecError, match=r"num_inference_steps must be 10 to 250"):
        sample_to_files(
            package,
            prompt="x",
            image=None,
            out_dir=tmp_path,
            params={"num_inference_steps": 1000},
        )
