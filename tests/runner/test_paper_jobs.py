"""The papers' jobs run from raw places to a report as they are written, but for the width and the counts."""

import logging
from pathlib import Path

import pytest

from tests.paper import make_places, overrides
from tests.tiny import write_llama
from transfusion.model.config import ModelConfig
from transfusion.resources import Resources
from transfusion.runner.run import run_job
from transfusion.spec.job import read_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

VOCAB_SIZE = 400
TINY = {"dim": 32, "depth": 2, "num_heads": 2}


def narrow(stage: str, **changed: object) -> list[str]:
    values = {
        **{f"model.{name}": value for name, value in (TINY | changed).items()},
        "precision": "fp32",
        "compile": "false",
    }
    return [f"stages.{stage}.config.{name}={value}" for name, value in values.items()]


@pytest.mark.parametrize("name", ["7b", "chameleon", "monoformer"])
def test_a_paper_job_comes_to_its_report(
    name: str, repository: Path, tmp_path: Path, ray_cluster: None
) -> None:
    job = repository / "jobs" / "paper" / f"{name}.yaml"
    places = make_places(
        tmp_path,
        latent_channels=4 if name == "monoformer" else 8,
        codes=64 if name == "chameleon" else None,
        vocab_size=VOCAB_SIZE,
    )
    given = overrides(job, places, tmp_path / "store") + narrow("train")
    if name == "7b":
        given += narrow("train", adapter="unet")
        given += [
            "stages.train.config.model.unet={channels: [8, 16], blocks: 1, time_dim: 16}",
            "stages.mixture.config.phases=[{start_step: 1, filters: "
            "{pairs: [{column: AESTHETIC_SCORE, at_least: 6.0}]}}]",
        ]
    if name == "monoformer":
        llama = write_llama(
            tmp_path / "llama",
            ModelConfig(**TINY, num_kv_heads=1, ffn_dim=64),
            vocab_size=VOCAB_SIZE,
        )
        for stage in ("before", "train"):
            given += narrow(stage, num_kv_heads=1, ffn_dim=64)
            given += [f"stages.{stage}.config.init_from={llama}"]
    results = run_job(read_job(job, given), resources=Resources(), log=logging.getLogger("tests"))
    made = {result.planned.stage.name: result.artifact for result in results}
    metrics = made["evaluation"].manifest.content.metrics
    assert metrics["text.bits_per_byte"] > 0
    assert made["report"].read("report.html")
