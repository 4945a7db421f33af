"""Held-out edits: which they are, who judges them, and what is said of a model that edits well, badly or not."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import transfusion.evaluate.edits as edits_module
from tests.mixes import Doc, mix, pair, sha_of_image
from tests.tiny import LATENT, QUICK, tiny_package
from transfusion.evaluate.config import EvaluateConfig
from transfusion.evaluate.edits import Judge, judge_edits
from transfusion.evaluate.held_out import Edit, held_out_edits
from transfusion.evaluate.judges import Evaluation
from transfusion.ingest.reader import MixtureReader
from transfusion.package.load import load_package
from transfusion.sample.sampler import Sampler

TONES = {"light": 220, "medium": 150, "dark": 60}


def face(tone: int) -> np.ndarray:
    """A face of some tone on a background that no edit changes."""
    pixels = np.full((16, 16, 3), (40, 90, 200), np.uint8)
    pixels[4:10, 4:10] = tone
    return pixels


def test_the_judge_looks_where_the_edits_differ_and_nowhere_else() -> None:
    judge = Judge.of([7, 8, 9], [face(tone) for tone in TONES.values()])
    assert [judge.nearest(face(tone)) for tone in (255, 190, 140, 90, 0)] == [7, 7, 8, 9, 9]
    noisy = face(155)
    noisy[:4] = 255
    assert judge.nearest(noisy) == 8
    assert Judge.of([0], [face(1)]).nearest(face(1)) is None
    assert Judge.of([0, 1], [face(1), face(1)]).nearest(face(1)) is None


def test_all_edits_of_an_image_are_held_out_together_and_none_is_trained_on(tmp_path: Path) -> None:
    docs = [
        Doc(key=f"{number:02}-{tone}", segments=[f"from {number}", 4, f"{tone} {number}"])
        for number in range(30)
        for tone in TONES
    ]
    mixture = mix(
        tmp_path / "store",
        {"edits": docs, "pairs": [pair(f"p{i}") for i in range(20)]},
        sources={"edits": {"conditions": "earlier_images"}},
        held_out_fraction=0.3,
        num_steps=30,
    )
    found = held_out_edits(mixture, limit=1000)
    assert 3 <= len(found) < len(docs)
    by_image: dict[tuple[bytes, ...], list[str]] = {}
    for edit in found:
        by_image.setdefault(edit.of, []).append(edit.key)
        number, tone = edit.key.split("-")
        assert edit.of == (sha_of_image(f"from {int(number)}"),)
        for latent, name in ((edit.images[0], "from"), (edit.target, tone)):
            assert float(latent.mean()) == sha_of_image(f"{name} {int(number)}")[0] / 256
        assert len(edit.instruction_ids) == 4
    assert {len(keys) for keys in by_image.values()} == {3}
    reader = MixtureReader(mixture, seed=0)
    trained = {
        key
        for step in range(reader.steps)
        for lane in range(reader.lanes)
        for key in reader.document_ids(step, lane)
    }
    assert trained
    assert not trained & {f"edits/{edit.key}" for edit in found}
    assert len(held_out_edits(mixture, limit=2)) == 2


def test_a_source_without_conditions_has_no_edits(tmp_path: Path) -> None:
    docs = {"edits": [Doc(key=f"{i:02}", segments=[f"a{i}", 4, f"b{i}"]) for i in range(20)]}
    assert held_out_edits(mix(tmp_path / "store", docs, held_out_fraction=0.4), limit=9) == []


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(
        config=EvaluateConfig(seed=0, **QUICK, batch_size=4),
        sampler=Sampler(load_package(tiny_package(tmp_path / "model"))),
        mixture=mix(tmp_path / "store", {"pairs": [pair("p")]}),
        pixels=[],
        world=None,
        folder=tmp_path,
        workers=ThreadPoolExecutor(1),
        advance=lambda count: None,
        log=logging.getLogger(),
    )


def made_up() -> list[Edit]:
    """Two images with three edits each, and one with a single edit."""
    drawn = torch.randn(10, *LATENT, generator=torch.Generator().manual_seed(0))
    of = [b"a"] * 3 + [b"b"] * 3 + [b"c"]
    return [
        Edit(f"e{i}", (name,), drawn[ord(name) - ord("a")][None], (3 + i, 4), drawn[3 + i])
        for i, name in enumerate(of)
    ]


def test_a_model_that_makes_the_true_edits_is_always_right(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perfect(evaluation, edits):
        sampler = evaluation.sampler
        return sampler.pixels_of(sampler.parts_of(torch.stack([one.target for one in edits])))

    def idle(evaluation, edits):
        sampler = evaluation.sampler
        return sampler.pixels_of(sampler.parts_of(torch.stack([one.images[-1] for one in edits])))

    def mistaken(evaluation, edits):
        one, two, three, *rest = perfect(evaluation, edits)
        return [two, three, one, *rest]

    monkeypatch.setattr(edits_module, "_draw", idle)
    judge_edits(evaluation, made_up())
    untouched = dict(evaluation.metrics)
    assert untouched["edits.accuracy"] == untouched["edits.unchanged_accuracy"]
    assert untouched["edits.accuracy"] == pytest.approx(1 / 3)
    assert untouched["edits.chance"] == pytest.approx(1 / 3)
    assert untouched["edits.psnr_db"] == untouched["edits.unchanged_psnr_db"]
    monkeypatch.setattr(edits_module, "_draw", mistaken)
    judge_edits(evaluation, made_up())
    assert evaluation.metrics["edits.accuracy"] == 0.5
    rows = json.loads((evaluation.folder / "edits.json").read_text())
    assert [row.get("correct") for row in rows] == [False] * 3 + [True] * 3 + [None]
    asked = [row["instruction"] for row in rows]
    assert [row["nearest"] for row in rows[:3]] == [asked[1], asked[2], asked[0]]
    monkeypatch.setattr(edits_module, "_draw", perfect)
    judge_edits(evaluation, made_up())
    assert evaluation.metrics["edits.accuracy"] == 1.0


def test_edits_are_drawn_and_kept_as_pictures(evaluation: Evaluation) -> None:
    judge_edits(evaluation, made_up())
    assert np.isfinite(list(evaluation.metrics.values())).all()
    rows = json.loads((evaluation.folder / "edits.json").read_text())
    for row in rows:
        for kind in ("source", "made", "true"):
            assert (evaluation.folder / row[kind]).is_file()
    before = dict(evaluation.metrics)
    judge_edits(evaluation, made_up())
    assert evaluation.metrics == before
    evaluation.metrics.clear()
    judge_edits(evaluation, [])
    assert evaluation.metrics == {}
