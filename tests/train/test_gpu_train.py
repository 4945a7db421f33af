"""The measurement for a GPU runs here at a tiny size, eager and compiled."""

import json
import subprocess
import sys


def test_every_kind_of_attention_is_measured_and_nothing_is_compiled_late(tmp_path):
    out = tmp_path / "gpu_train.json"
    # A process of its own: it joins a world, and the checks of shapes that tests have cannot be traced.
    words = (
        f"{sys.executable} -m tests.benchmarks.gpu_train --device cpu --preset tiny --length 128 "
        f"--sequences 1 --rounds 1 --accumulate 2 --compile off aot_eager --gathered-for step --out {out}"
    )
    done = subprocess.run(words.split(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert record["faults"] == {}
    results = {(row["name"], row["unit"]): row for row in record["results"]}
    for how in ("eager", "compiled"):
        for attention in ("key ranges", "dense mask", "causal only"):
            assert results[f"tiny, {how}, {attention}", "positions/s"]["value"] > 0
            rates = [
                row["ratio"]
                for name, unit in results
                if unit == "TFLOP/s" and name.startswith(f"tiny, {how}, {attention}")
                for row in [results[name, unit]]
            ]
            assert len(rates) == 1
            assert 0 < rates[0] < 1
        late = results[f"tiny, {how}, compiled after the warm-up", "times"]
        assert late["value"] == 0
        assert late["holds"]
