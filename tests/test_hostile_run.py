"""A folder of hostile files and a hostile text file go through the data stages: nothing is lost, nothing stops."""

import logging

import numpy as np
import pytest
import torch

from tests import hostile
from transfusion.artifacts.artifact import Artifact
from transfusion.artifacts.pixels import read_pixels
from transfusion.artifacts.shards import read_rejects, row_entries
from transfusion.artifacts.tables import load_table
from transfusion.artifacts.tokens import token_rows
from transfusion.autoencoder.config import AutoencoderConfig
from transfusion.autoencoder.network import build_network, save_network
from transfusion.resources import Resources
from transfusion.runner.run import run_job
from transfusion.sequence.special import SpecialIds
from transfusion.spec.job import check_job
from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def artifacts(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Every data stage over the hostile folder, through an autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "images").mkdir()
    hostile.write_images(folder / "images")
    hostile.write_text(folder / "lines.jsonl")
    torch.manual_seed(0)
    network = build_network(AutoencoderConfig(block_channels=(8, 8, 8)), sample_size_px=64)
    save_network(folder / "vae", config=dict(network.config), weights=network.state_dict())
    limits = {"limits": {"max_pixels": 4_000_000}}
    job = {
        "store": str(folder / "store"),
        "stages": {
            "images": {
                "uses": "data_pipelines.sources.image_folder",
                "config": {"path": str(folder / "images")},
            },
            "text": {
                "uses": "data_pipelines.sources.text",
                "config": {"path": str(folder / "lines.jsonl"), "max_document_bytes": 100_000},
            },
            "pixels": {
                "uses": "data_pipelines.pixels",
                "inputs": {"images": "images"},
                "config": {"image_size_px": 64, **limits},
            },
            "autoencoder": {
                "uses": "transfusion.autoencoder",
                "inputs": {"images": "pixels"},
                "config": {"path": str(folder / "vae")},
            },
            "latents": {
                "uses": "data_pipelines.encode_images",
                "inputs": {"images": "images", "autoencoder": "autoencoder"},
                "config": {"image_size_px": 64, **limits},
            },
            "tokenizer": {
                "uses": "data_pipelines.tokenizer",
                "inputs": {"text": "text", "captions": "images"},
                "config": {"vocab_size": 320},
            },
            "tokens": {
                "uses": "data_pipelines.tokenize_text",
                "inputs": {"documents": "text", "tokenizer": "tokenizer"},
            },
        },
    }
    checked = check_job(job, name="hostile", where="job")
    results = run_job(checked, resources=Resources(), log=logging.getLogger("tests"))
    return {result.planned.stage.name: result.artifact for result in results}


@pytest.mark.parametrize("name", ["pixels", "latents"])
def test_every_bad_image_is_in_the_reject_table_with_its_reason(
    artifacts: dict[str, Artifact], name: str
) -> None:
    expected = {image.name: image.reason for image in hostile.bad_images()}
    rejects = {row["key"]: row["reason"] for row in read_rejects(artifacts[name]).to_pylist()}
    assert rejects == expected
    outcomes = artifacts[name].manifest.content.outcomes
    assert outcomes is not None
    assert outcomes.input == len(expected) + len(list(hostile.good_images()))


def test_every_good_image_has_the_right_pixels(artifacts: dict[str, Artifact]) -> None:
    rows = {row.key: row for row in read_pixels(artifacts["pixels"])}
    for image in hostile.good_images():
        found = np.array(hostile.corners(rows[image.name].pixels), int)
        assert np.abs(found - np.array(image.quadrants)).max() <= image.tolerance, image.name


def test_every_bad_line_is_named_with_file_and_line_and_good_text_is_whole(
    artifacts: dict[str, Artifact],
) -> None:
    lines = list(hostile.lines())
    rejects = read_rejects(artifacts["tokens"]).to_pylist()
    expected = {f"lines.jsonl:{n}": line.reason for n, line in enumerate(lines, 1) if line.reason}
    assert {row["key"]: row["reason"] for row in rejects} == expected
    tokenizer = Tokenizer(artifacts["tokenizer"].read(MODEL))
    special = SpecialIds.after(tokenizer.num_pieces)
    texts = []
    for entry in row_entries(artifacts["tokens"]).values():
        for row in token_rows(load_table(artifacts["tokens"].store, entry)):
            ids = row.segments[0]
            assert not {special.bos, special.eos, special.boi, special.eoi, special.pad} & set(
                ids.tolist()
            )
            texts.append(tokenizer.decode(ids.tolist()))
    assert sorted(texts) == sorted(line.text for line in lines if line.text is not None)
