"""The report: one file that stands alone, escapes what it shows, is bounded, and leaves out what is not there."""

import json
import logging
import re
from pathlib import Path

import pytest

from tests.report.fake_run import HOSTILE, FakeRun, make_run
from tests.report.page import Tree
from transfusion.artifacts.manifest import Content, manifest_path
from transfusion.report.config import ReportConfig
from transfusion.report.run import run as write_report
from transfusion.resources import Resources
from transfusion.stage import Made, Progress, StageContext
from transfusion.storage.store import open_store


def report(made: FakeRun, scratch: Path, config: ReportConfig | None = None) -> tuple[Made, str]:
    scratch.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("tests")
    context = StageContext(
        name="report", uses="transfusion.report", version=1, fingerprint="e" * 64, store=made.store,
        resources=Resources(), scratch=scratch, log=log,
        progress=lambda **given: Progress(log, **given),
    )  # fmt: skip
    roles = {"run": "train", "evaluation": "evaluate", "model": "export", "mixture": "mixture",
             "autoencoder": "autoencoder"}  # fmt: skip
    inputs = {role: made.made[name] for role, name in roles.items()}
    result = write_report(config or ReportConfig(title="quickstart"), inputs, context)
    entry = next(file for file in result.files if file.name == "report.html")
    return result, made.store.read(entry.path).decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    folder = tmp_path_factory.mktemp("run")
    return make_run(open_store(str(folder / "store")), folder / "scratch")


@pytest.fixture(scope="module")
def page(made: FakeRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(made, tmp_path_factory.mktemp("report"))[1]


@pytest.fixture(scope="module")
def tree(page: str) -> Tree:
    return Tree(page)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(tree: Tree) -> None:
    ids = {attributes["id"] for _, attributes in tree.seen if "id" in attributes}
    links = [attributes["href"] for attributes in tree.all("a")]
    assert links
    assert {link.removeprefix("#") for link in links} <= ids


def test_the_page_stands_alone(page: str, tree: Tree) -> None:
    assert not tree.all("script")
    assert not tree.all("link")
    assert all(image["src"].startswith("data:image/png;base64,") for image in tree.all("img"))
    assert not re.search(r"https?://|url\(|@import", page)


def test_what_comes_from_outside_is_escaped(page: str, tree: Tree) -> None:
    assert "<script" not in page
    assert "<b>bold" not in page
    assert HOSTILE in tree.text


@pytest.mark.parametrize(
    "told",
    [
        "97.7%", "images: colour right", "reconstructions 97%", "unigram model 3.020",
        "a red circle", "Next tokens: loss per token", "two objects", "too many pixels 1",
        "image file is truncated", "data_pipelines.encode_images", "images/part-03.parquet",
        "0123456789ab", "2.41M parameters", "padding 0.22%", "75.17%", "left as it was 22.1%, chance 20%",
        "least noise",
        "denoising loss by noise level", "Gradient norm by group", "Stream behind the last block", "MFU, %",
        "Peak memory", "checkpoint 3.8 ms", "make it cyan", "nearest: <script>",
         "went back to the checkpoint of step 580; steps 580 to 699 are passed over",
    ],
)  # fmt: skip
def test_the_page_tells_it(tree: Tree, told: str) -> None:
    assert told in tree.text


def test_every_artifact_down_to_the_sources_is_there_once(page: str, made: FakeRun) -> None:
    for artifact in made.made.values():
        assert page.count(f'<details id="artifact-{artifact.manifest.fingerprint[:16]}"') == 1


def test_verdicts_are_counted_over_all_samples_and_shown_on_those_that_fit(
    page: str, tree: Tree
) -> None:
    shown = tree.all("figure")
    samples = [figure for figure in shown if figure["class"] in {"sample ok", "sample bad"}]
    right, total = map(int, re.findall(r"(\d+) of (\d+) right", page)[0])
    assert total == 128
    assert 0 < right < 128
    assert 100 < len(samples) < 192
    assert "the first" in page


def test_strips_drawn_on_the_way_are_shown_from_first_to_last_in_their_width(tree: Tree) -> None:
    strips = [one for one in tree.all("img") if one["alt"].startswith("drawn after step")]
    # Of ten, six: the last of each sixth.
    assert [int(one["alt"].split()[-1]) for one in strips] == [125, 375, 625, 750, 1000, 1250]
    assert {(one["width"], one["height"]) for one in strips} == {("800", "100")}
    assert f"from left to right: a red circle; {HOSTILE}" in tree.text


def test_the_time_that_training_waited_for_data_is_told(page: str) -> None:
    # 4 ms of each step of 160 ms.
    assert "Waiting for data: 2.50% of the time of all steps." in page


def test_images_and_points_are_bounded(tmp_path: Path) -> None:
    made = make_run(open_store(str(tmp_path / "store")), tmp_path / "scratch", steps=2000)
    config = ReportConfig(max_images=30, max_points=50)
    page = report(made, tmp_path / "report", config)[1]
    tree = Tree(page)
    assert 20 <= len(tree.all("img")) <= 30
    drawn = [path["d"].count("L") + 1 for path in tree.all("path") if "noise" in path["class"]]
    assert drawn
    assert max(drawn) <= 50


def test_without_verdicts_the_samples_are_shown_unjudged(tmp_path: Path) -> None:
    made = make_run(open_store(str(tmp_path / "store")), tmp_path / "scratch", judged=False)
    page = report(made, tmp_path / "report")[1]
    tree = Tree(page)
    assert HOSTILE in tree.text
    assert not [figure for figure in tree.all("figure") if "ok" in figure["class"].split()]
    assert 'id="scores"' not in page
    assert "images: colour right" not in page


def test_the_nearest_training_image_is_beside_each_sample_and_edit(tmp_path: Path) -> None:
    made = make_run(
        open_store(str(tmp_path / "store")), tmp_path / "scratch", nearest=True, steps=5
    )
    config = ReportConfig(max_images=90)
    tree = Tree(report(made, tmp_path / "report", config)[1])
    samples = [one for one in tree.all("figure") if one["class"].startswith("sample pair ")]
    edits = [one for one in tree.all("figure") if one["class"].startswith("sample edit")]
    beside = [one for one in tree.all("img") if one["alt"] == "nearest training image"]
    assert len(beside) == len(samples) + len(edits) > 20
    assert len(tree.all("img")) <= 90
    rows = json.loads(made.made["evaluate"].read("nearest.json"))
    first = rows[0]
    assert f"{first['ratio']:.2f}\u00d7 pairs/{first['key']}" in tree.text
    assert "pairs/train-1, image 2" in tree.text
    flagged = [one for one in tree.all("small") if one.get("class") == "copy"]
    assert 0 < len(flagged) < len(beside)
    assert "8.3%" in tree.text
    assert "drawings that copy a training image" in tree.text


def test_an_evaluation_of_numbers_alone_and_a_run_without_metrics_make_a_page(
    tmp_path: Path,
) -> None:
    made = make_run(open_store(str(tmp_path / "store")), tmp_path / "scratch", steps=5)
    made.commit("evaluate", "transfusion.evaluate", "evaluation", inputs={"model": "export"},
                metrics={"text.bits_per_byte": 2.5}, config={"tasks": []})  # fmt: skip
    made.commit("train", "transfusion.train", "run", inputs=("mixture",), config={"steps": 0})
    made.commit("mixture", "data_pipelines.mix", "mixture", inputs=("latents", "tokens"))
    page = report(made, tmp_path / "report")[1]
    Tree(page)
    for left_out in ("samples", "captions", "edits", "training"):
        assert f'id="{left_out}"' not in page
        assert f'href="#{left_out}"' not in page
    assert "2.500" in page


def test_an_ancestor_that_was_collected_is_named_not_fatal(tmp_path: Path) -> None:
    made = make_run(open_store(str(tmp_path / "store")), tmp_path / "scratch", steps=5)
    gone = made.made["pixels"].manifest
    made.store.delete(manifest_path(gone.uses, gone.fingerprint))
    assert f"no longer in the store: {made.made['pixels'].path}" in Tree(
        report(made, tmp_path / "report")[1]
    ).text.replace("\n", " ")


def test_the_digest_covers_the_numbers_and_not_the_page(made: FakeRun, tmp_path: Path) -> None:
    first, _ = report(made, tmp_path / "one")
    other = ReportConfig(title="quickstart", max_images=3)
    second, _ = report(made, tmp_path / "two", other)
    digests = [Content(kind="report", files=list(one.files)).digest() for one in (first, second)]
    assert digests[0] == digests[1]
    summary = next(file for file in first.files if file.name == "summary.json")
    values = json.loads(made.store.read(summary.path))
    assert values["metrics"]["single_object.color_accuracy"] == 0.977
    assert values["artifacts"]["latents"]["outcomes"]["rejected"] == {"truncated": 3}
    assert "seconds" not in json.dumps(values)
