"""Images at chosen places of a text: each is what the sampler draws of what stands before it."""

import numpy as np
import pytest
from PIL import Image

from tests.tiny import QUICK, tiny_package
from transfusion.errors import SpecError
from transfusion.package.load import load_package
from transfusion.sample.command import sample_to_files
from transfusion.sample.engine import generate
from transfusion.sample.infill import infill, with_places
from transfusion.sample.params import params_with
from transfusion.sample.reading import ImagePart
from transfusion.sample.rows import Request
from transfusion.sample.sampler import Sampler


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    return Sampler(load_package(tiny_package(tmp_path_factory.mktemp("infill"))))


def params(sampler: Sampler, seed: int = 3):
    return params_with(sampler.package.config.sampling, **QUICK, seed=seed)


def test_an_image_is_drawn_from_the_text_before_it_and_the_text_behind_it_is_kept(
    sampler: Sampler,
) -> None:
    given = ["a red circle", None, "left of a blue square"]
    (before, image, behind), (_, other, *rest) = infill(
        sampler, [given, ["a red circle", None]], [params(sampler)] * 2
    )
    assert (before, behind, rest) == ("a red circle", "left of a blue square", [])
    drawn = params(sampler).model_copy(update={"modalities": ("image",)})
    (alone,) = sampler.sample([sampler.request("a red circle", drawn)])
    assert abs(alone.images[0].astype(int) - image.astype(int)).max() <= 1
    # The model is causal: what stands behind has no part in it.
    assert abs(other.astype(int) - image.astype(int)).max() <= 1


def test_a_later_image_sees_the_text_between_and_the_earlier_image_clean(sampler: Sampler) -> None:
    one, other = (
        infill(sampler, [["a red circle", None, between, None]], [params(sampler)])[0]
        for between in ("and a blue square", "and a green triangle")
    )
    assert abs(one[1].astype(int) - other[1].astype(int)).max() <= 1
    assert abs(one[3].astype(int) - other[3].astype(int)).max() > 1
    assert abs(one[3].astype(int) - one[1].astype(int)).max() > 1

    # By hand: the first latent, then both texts around it.
    package = sampler.package
    first = params(sampler).model_copy(update={"modalities": ("image",)})
    opening = sampler.request("a red circle", first).prompt
    (result,) = generate(package.model, package.config, [Request(opening, first)])
    (latent,) = result.parts
    assert isinstance(latent, ImagePart)
    second = first.model_copy(update={"seed": first.seed + 2**32})
    between = sampler.request("and a blue square", second).prompt
    (alone,) = sampler.sample([Request((*opening, latent, *between), second)])
    assert abs(alone.images[0].astype(int) - one[3].astype(int)).max() <= 1


def test_given_images_and_a_place_at_the_start_are_taken(sampler: Sampler) -> None:
    given = np.full((16, 16, 3), 200, np.uint8)
    (segments,) = infill(sampler, [[None, given, "two", None]], [params(sampler)])
    assert [type(one) for one in segments] == [np.ndarray, np.ndarray, str, np.ndarray]
    np.testing.assert_array_equal(segments[1], given)
    assert infill(sampler, [["no place"]], [params(sampler)]) == [("no place",)]


def test_places_are_marked_in_a_text_and_white_space_around_them_is_left_out() -> None:
    assert with_places("a dog [image] and\n[image]  end ") == ["a dog", None, "and", None, "end"]
    assert with_places("[image] x") == [None, "x"]
    assert with_places("[image][image]") == [None, None]
    with pytest.raises(ValueError, match=r"write \[image\] where it goes"):
        with_places("[Image] of a dog")


def test_prompts_of_a_file_are_written_again_with_their_images(tmp_path) -> None:
    package = tiny_package(tmp_path / "package")
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("a red circle [image] and a [image]\n[image] two\n")
    more = {"image": None, "params": QUICK, "mode": "infill"}
    told = list(sample_to_files(package, prompt="", out_dir=out, prompts=file, **more))
    assert told == ["2/2 prompts"]
    assert sorted(place.name for place in out.iterdir()) == [
        "00000-0.txt", "00000-1.png", "00000-2.txt", "00000-3.png", "00001-0.png", "00001-1.txt",
    ]  # fmt: skip
    assert (out / "00000-2.txt").read_text() == "and a"

    alone = tmp_path / "alone"
    list(sample_to_files(package, prompt="a red circle [image] and", out_dir=alone, **more))
    assert sorted(place.name for place in alone.iterdir()) == ["000.txt", "001.png", "002.txt"]
    one, two = (np.asarray(Image.open(p)) for p in (out / "00000-1.png", alone / "001.png"))
    assert abs(one.astype(int) - two.astype(int)).max() <= 1

    file.write_text("a red circle")
    with pytest.raises(SpecError, match=r"lines 1 to 1: .*marks no place"):
        list(sample_to_files(package, prompt="", out_dir=tmp_path / "x", prompts=file, **more))
