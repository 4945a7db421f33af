"""A file of prompts, against its lines one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tiny import QUICK, tiny_package
from transfusion.errors import SpecError
from transfusion.package.load import load_package
from transfusion.sample.command import sample_to_files
from transfusion.sample.params import SamplingParams, params_with
from transfusion.sample.prompts import sample_prompts
from transfusion.sample.sampler import Sampler


def test_every_line_is_answered_once_in_files_that_bear_its_number(tmp_path) -> None:
    package = tiny_package(tmp_path / "package")
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("a red circle\n\na blue square\n")
    more = {"prompt": "", "image": None, "out_dir": out, "prompts": file}
    params = QUICK | {"seed": 5}
    told = list(sample_to_files(package, params=params, mode="image", **more))
    assert told == ["2/2 prompts"]
    assert sorted(place.name for place in out.iterdir()) == ["00000-0.png", "00002-0.png"]

    sampler = Sampler(load_package(package))
    one = params_with(sampler.package.config.sampling, **QUICK, seed=7, modalities=("image",))
    (alone,) = sampler.sample([sampler.request("a blue square", one)])
    drawn = Image.open(out / "00002-0.png")
    assert abs(alone.images[0].astype(int) - list_of(drawn)).max() <= 1

    kept = (out / "00002-0.png").stat().st_mtime_ns
    (out / "00000-0.png").unlink()
    assert list(sample_to_files(package, params=params, mode="image", **more)) == ["1/1 prompts"]
    assert (out / "00002-0.png").stat().st_mtime_ns == kept


def list_of(image: Image.Image):
    return np.asarray(image).astype(int)


def test_a_file_that_is_no_text_or_a_prompt_too_many_is_refused(tmp_path) -> None:
    package = tiny_package(tmp_path / "package")
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe")
    more = {"image": None, "out_dir": tmp_path / "out", "prompts": file, "params": QUICK}
    with pytest.raises(SpecError, match="lines of UTF-8"):
        list(sample_to_files(package, prompt="", mode="image", **more))
    with pytest.raises(SpecError, match="neither --prompt"):
        list(sample_to_files(package, prompt="x", mode="image", **more))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("names_given", range(6))
def test_a_line_whose_files_were_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_given: int
) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    file.write_text("one\ntwo\n")
    picture = np.zeros((2, 2, 3), np.uint8)
    silent = Sampler.__new__(Sampler)  # `answer` stands for it

    def answer(_: Sampler, prompts: Any, params: Any) -> list[tuple[Any, ...]]:
        return [
            (f"{prompt}, ", picture, f"seed {p.seed}")
            for prompt, p in zip(prompts, params, strict=True)
        ]

    def run() -> None:
        list(sample_prompts(silent, file, out, SamplingParams(), answer=answer))

    rename, given = Path.rename, 0

    def dies(place: Path, target: Path) -> Path:
        nonlocal given
        if given == names_given:
            raise Killed
        given += 1
        return rename(place, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        with pytest.raises(Killed):
            run()
    # An interrupted run may have written more of a line.
    for longer in (".00000-3.png", "00001-3.png"):
        (out / longer).touch()
    run()
    expected = [
        f"{n:05}-{i}.{kind}" for n in (0, 1) for i, kind in enumerate(("txt", "png", "txt"))
    ]
    assert sorted(place.name for place in out.iterdir()) == expected
    assert (out / "00001-0.txt").read_text() + (out / "00001-2.txt").read_text() == "two, seed 1"
