"""`transfusion show --batch`: every position stands there once, with what the tensors say of it."""

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pipeline import (
    CODES,
    coded,
    make,
    make_autoencoder,
    make_mixture,
    mixture_of_codes,
    shapes,
)
from transfusion.artifacts.artifact import Artifact
from transfusion.cli import app
from transfusion.errors import ArtifactError, SpecError
from transfusion.ingest.reader import MixtureReader
from transfusion.runner.show_batch import batch_status, batch_text, job_batch, parse_place
from transfusion.runner.show_sequences import example_sequences

SMOKE = Path("jobs/smoke.yaml")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return make_mixture(tmp_path_factory.mktemp("batch") / "store")


def test_stretches_cover_each_sequence_once_and_tell_its_tensors(mixture: Artifact) -> None:
    shown = batch_status(mixture, 2, 1)
    reader = MixtureReader(mixture, seed=0)
    batch = reader.micro_batch(2, 1)
    length = batch.token_ids.shape[1]
    assert len(shown["sequences"]) == len(batch.token_ids) == 3
    for row, stretches in enumerate(shown["sequences"]):
        covered = [at for one in stretches for at in range(one["first"], one["last"] + 1)]
        assert covered == list(range(length))
        for one in stretches:
            if one["role"] == "padding":
                continue
            for at, seen in zip((one["first"], one["last"]), one["sees"], strict=True):
                assert seen == [[int(batch.lo[row, at]), int(batch.hi[row, at]) - 1]]
            if one["role"] == "image":
                places = batch.image_positions[one["slot"]].tolist()
                assert places == [row * length + at for at in range(one["first"], one["last"] + 1)]
                assert one["timestep"] == int(batch.timesteps[one["slot"]])
    everything = [one for part in shown["sequences"] for one in part]
    assert sum(one.get("targets", 0) for one in everything) == int(batch.text_weight.sum())
    assert shown["images"] == int(batch.image_weight.sum()) > 0
    documents = [one["document"] for one in everything if "document" in one]
    assert documents == list(reader.document_ids(2, 1))


def test_a_mark_tells_the_token_that_it_is_to_predict(mixture: Artifact) -> None:
    reader = MixtureReader(mixture, seed=0)
    ids = reader.micro_batch(0, 0).token_ids
    for row, stretches in enumerate(batch_status(mixture, 0, 0)["sequences"]):
        for one, following in itertools.pairwise(stretches):
            if one["role"] == "BOI":
                # The first patch is no token.
                assert "next" not in one
            if one["role"] == "EOI" and following["role"] == "EOS":
                assert one["next"] == "EOS"
                assert ids[row, following["first"]] == reader.special.eos


def test_the_command_prints_a_line_a_stretch(mixture: Artifact) -> None:
    address = mixture.store.url(mixture.path)
    done = CliRunner().invoke(app, ["show", address, "--batch", "1:1"])
    assert done.exit_code == 0, done.output
    assert "step 1, lane 1, seed 0: 3 sequences of 256 positions" in done.output
    assert "16 patches, t " in done.output
    found = CliRunner().invoke(app, ["show", address, "--batch", "1:1", "--json"])
    assert json.loads(found.output) == json.loads(json.dumps(batch_status(mixture, 1, 1)))


def test_a_twin_is_a_stretch_behind_its_document_that_sees_two_ranges(mixture: Artifact) -> None:
    inputs = {role: mixture.input(role) for role in mixture.manifest.inputs}
    config = {**mixture.manifest.config, "layout": {"clean_copies": True}, "caption_first": 0.0}
    copied = make(Path(mixture.store.uri), "data_pipelines.mix", config, inputs)
    num_twins = 0
    for sequence in batch_status(copied, 0, 0)["sequences"]:
        roles = [one["role"] for one in sequence]
        assert [one["first"] for one in sequence[1:]] == [one["last"] + 1 for one in sequence[:-1]]
        for at, one in enumerate(sequence):
            if one["role"] != "image" or roles[at - 1] == "BOI":
                continue
            # BOS, BOI, patches, EOI, caption, EOS, and behind these the patches with their noise.
            assert roles[at - 6 : at] == ["BOS", "BOI", "image", "EOI", "text", "EOS"]
            bos, boi, clean, _, _, eos = sequence[at - 6 : at]
            own, context = [one["first"], one["last"]], [bos["first"], boi["last"]]
            assert one["sees"] == [[own, context], [own, context]]
            assert (clean["timestep"], clean["weight"], one["weight"]) == (0, 0.0, 1.0)
            assert one["slot"] == clean["slot"] + 1
            assert "next" not in eos
            assert eos["targets"] == one["targets"] == 0
            num_twins += 1
    pairs = [
        document
        for example in example_sequences(copied, 4)
        for document in example["documents"]
        if document["key"].startswith("pairs/")
    ]
    assert pairs
    for document in pairs:
        assert document["begins"]
        assert document["ends"]
        assert [sorted(part) for part in document["parts"]] == [["image"], ["text"]]
    assert num_twins


def test_places_that_are_not_there_and_other_artifacts_are_refused(mixture: Artifact) -> None:
    with pytest.raises(ArtifactError, match="no step 6: the plan has 0 to 5"):
        batch_status(mixture, 6, 0)
    with pytest.raises(ArtifactError, match="this holds tokens"):
        batch_status(mixture.input("prose"), 0, 0)
    assert parse_place("7") == (7, 0)
    for text in ("", "-1", "1:x", "1:2:3", "x"):
        with pytest.raises(SpecError, match="must read STEP or STEP:LANE"):
            parse_place(text)


def test_codes_of_an_image_are_a_stretch_with_their_numbers(tmp_path: Path) -> None:
    root = tmp_path / "store"
    tokens = coded(root, shapes(root), make_autoencoder(root, codebook_size=CODES))
    mixture = mixture_of_codes(root, tokens)
    shown = batch_status(mixture, 0, 0)
    reader = MixtureReader(mixture, seed=0)
    ids, special = reader.micro_batch(0, 0).token_ids, reader.special
    height, width = reader.mixture.latent_height, reader.mixture.latent_width
    held = 0
    for row, stretches in enumerate(shown["sequences"]):
        for one, following in itertools.pairwise(stretches):
            if one["role"] == "BOI":
                assert one["next"] == f"code {following['codes'][0]}"
            if one["role"] == "codes":
                found = ids[row, one["first"] : one["last"] + 1] - special.first_code
                assert one["codes"] == found.tolist()
                assert len(found) == height * width
                assert one["targets"] == len(found)
                held += 1
    assert shown["images"] == held > 0
    told = batch_text(shown)
    assert f"{held} images as codes and " in told
    assert f"{height * width} codes of an image: " in told


def test_a_job_that_has_no_batch_yet_or_never_says_so(tmp_path: Path) -> None:
    overrides = [f"store={tmp_path / 'store'}"]
    with pytest.raises(
        ArtifactError, match=r"transfusion run .*smoke.yaml store=.* --until mixture"
    ):
        job_batch(SMOKE, overrides, 0, 0)
    words = tmp_path / "words.yaml"
    words.write_text("stages: {prose: {uses: data_pipelines.sources.python_docs}}")
    with pytest.raises(ArtifactError, match="trains on a mixture, and this one does not"):
        job_batch(words, overrides, 0, 0)
