"""`transfusion show` on a mixture: the counts are those of the batches, the examples are their documents."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from tests.pipeline import make_mixture
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.shards import row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import token_rows
from transfusion.cli import app
from transfusion.errors import ArtifactError
from transfusion.ingest.reader import MixtureReader
from transfusion.runner.show import artifact_status
from transfusion.runner.show_mixture import histogram, mixture_summary, mixture_text
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("show") / "store")


def address(artifact: Artifact) -> str:
    return artifact.store.url(artifact.path)


def shown(artifact: Artifact, *options: str) -> str:
    result = CliRunner().invoke(app, ["show", address(artifact), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_histograms_and_shares_are_those_of_the_batches(mixture: Artifact) -> None:
    summary = json.loads(shown(mixture, "--json"))["mixtures"]["data_pipelines.mix"]
    reader = MixtureReader(mixture, seed=0)
    filled, documents, images = Counter(), Counter(), 0
    for step in range(reader.steps):
        for lane in range(reader.lanes):
            batch = reader.micro_batch(step, lane)
            images += int(batch.image_weight.sum())
            patches = set(batch.image_positions.flatten().tolist())
            ids = batch.token_ids.flatten().tolist()
            for row in range(3):
                places = range(256 * row, 256 * (row + 1))
                filled[sum(ids[p] != reader.special.pad or p in patches for p in places)] += 1
            for sequence in reader.plan.sequences(step, lane):
                documents[len(sequence)] += 1
    assert summary["sequences"] == 36 == sum(filled.values())
    histograms = summary["histograms"]
    assert histograms["sequences"] == histograms["of_sequences"] == 36
    for found, counted in (
        (histograms["positions_filled"], filled),
        (histograms["documents_per_sequence"], documents),
    ):
        assert (found["least"], found["most"]) == (min(counted), max(counted))
        assert sum(found["counts"]) == 36
        total = sum(value * count for value, count in counted.items())
        assert found["mean"] == pytest.approx(total / 36)
    assert summary["sources"]["pairs"]["images"] == images
    assert summary["holds"]["patch"]["tokens"] == 16 * images
    assert sum(share["part"] for share in summary["holds"].values()) == pytest.approx(1)
    assert sum(source["part"] for source in summary["sources"].values()) == pytest.approx(1)
    assert summary["outcomes"]["filtered"]["held_out"] > 0


def test_examples_are_the_documents_of_the_sequences(mixture: Artifact) -> None:
    tokenizer = Tokenizer(mixture.input("captions").input("tokenizer").read(MODEL))
    texts = {}
    for role, name in (("captions", "pairs"), ("prose", "prose")):
        artifact = mixture.input(role)
        for entry in row_entries(artifact).values():
            for row in token_rows(load_table(artifact.store, entry)):
                texts[f"{name}/{row.key}"] = [
                    tokenizer.decode(ids.tolist()) for ids in row.segments
                ]
    status = json.loads(shown(mixture, "--json", "--examples", "36"))
    examples = status["mixtures"]["data_pipelines.mix"]["examples"]
    places = {(one["step"], one["lane"], one["sequence"]) for one in examples}
    assert places == {(s, lane, n) for s in range(6) for lane in range(2) for n in range(3)}
    pieces = 0
    for sequence in examples:
        assert sequence["positions"] == sum(one["positions"] for one in sequence["documents"])
        for document in sequence["documents"]:
            parts = document["parts"]
            whole = document["begins"] and document["ends"]
            pieces += not whole
            if document["key"].startswith("pairs/"):
                assert whole
                assert {"image": "4x4"} in parts
            said = [part["text"] for part in parts if "text" in part]
            if whole:
                assert said == texts[document["key"]]
            else:
                # A cut may fall within a character; what stands between is there word for word.
                assert all(text.strip("\ufffd ") in texts[document["key"]][0] for text in said)
    assert pieces > 5


def test_the_text_tells_sources_shares_and_examples(mixture: Artifact) -> None:
    told = shown(mixture, "--examples", "2")
    assert "36 sequences of 256 positions, 6 steps" in told
    for line in ("Sources", "Positions hold", "Sequences by the positions that are filled"):
        assert f"\n{line}\n" in told
    assert "step 0, lane 0, sequence 0: 256 positions" in told
    assert "step 3, lane 0, sequence 0: " in told
    assert "[image 4x4 pairs/shapes/" in told


def test_phases_are_told_apart_and_what_is_not_told_is_left_out(mixture: Artifact) -> None:
    phases = [
        {"start_step": 0, "weights": {"a": 0.5, "b": 0.5}, "statistics": {"a": {"share": 0.4}}},
        {"start_step": 4, "weights": {"b": 1.0}, "statistics": {"b": {"positions": 8.0}}},
    ]
    content = mixture.manifest.content
    metadata = content.metadata | {"phases": phases}
    changed = content.model_copy(update={"metadata": metadata})
    manifest = mixture.manifest.model_copy(update={"content": changed})
    summary = mixture_summary(Artifact(mixture.store, manifest))
    assert [(one["start_step"], one["end_step"]) for one in summary["phases"]] == [(0, 4), (4, 6)]
    assert summary["phases"][0]["sources"]["a"] == {"wanted": 0.5, "part": 0.4}
    assert summary["phases"][0]["sources"]["b"] == {"wanted": 0.5, "part": None}
    assert summary["phases"][1]["sources"]["b"]["part"] == 1.0
    told = mixture_text(summary, None)
    assert "Steps 0 up to 4\n" in told
    assert "Steps 4 up to 6\n" in told
    assert "40.00%" in told


def test_examples_of_what_is_no_mixture_are_refused(mixture: Artifact) -> None:
    with pytest.raises(ArtifactError, match="holds tokens"):
        artifact_status(address(mixture.input("prose")), examples=1)


def test_bins_hold_every_value_once() -> None:
    values = [7, 7, 8, 30, 31, 95]
    found = histogram(values)
    assert found["first"][0] == 7
    assert len(found["counts"]) <= 10
    bounds = zip(found["first"], [*found["first"][1:], 96], strict=True)
    assert found["counts"] == [sum(lo <= v < hi for v in values) for lo, hi in bounds]
    assert histogram([256] * 3)["counts"] == [3]
    assert histogram([])["counts"] == []
