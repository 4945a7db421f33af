"""The measurement for a GPU runs here at a tiny size, eager and compiled."""

import json
import subprocess
import sys

import pytest

from tests.benchmarks.gpu_sampling import idle_share


def test_images_texts_and_both_are_measured_beside_their_forward_passes(tmp_path) -> None:
    out = tmp_path / "gpu.json"
    words = (
        f"{sys.executable} -m tests.benchmarks.gpu --device cpu --preset tiny --length 128 --sequences 1 "
        f"--rounds 1 --counts 2 --only sampling --out {out}"
    )
    done = subprocess.run(words.split(), capture_output=True, text=True)
    record = json.loads(out.read_text())
    assert record["faults"] == {}, done.stderr
    assert "not measured without CUDA: gaps between kernels, CUDA graphs" in done.stdout
    results = {row["name"]: row for row in record["results"]}
    for how in ("eager", "compiled"):
        for kind, unit in (("text", "tokens/s"), ("image", "images/s")):
            row = results[f"sampling, {kind}, 2 at a time, {how}"]
            assert row["unit"] == unit
            assert row["value"] > 0
            assert row["ratio"] == pytest.approx(row["value"] / row["reference"])
    mixed = results["mixing 2 images and 2 texts of 25"]
    assert mixed["unit"] == "s"
    assert mixed["ratio"] > 0


def test_a_gpu_is_idle_where_no_kernel_runs() -> None:
    assert idle_share([(0.0, 4.0)]) == 0
    assert idle_share([(0.0, 4.0), (1.0, 2.0), (3.0, 5.0), (6.0, 8.0)]) == pytest.approx(1 / 8)
