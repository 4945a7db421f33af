"""A compiled model in an engine whose steps are in buckets; in a process of its own, without checks of shapes."""

import subprocess
import sys

SCRIPT = """
import torch
from tests.tiny import package_config, tiny_model
from transfusion.sample.compiled import compile_rows
from transfusion.sample.engine import Engine
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request

config, model = package_config(), tiny_model(**{options})
image = {{"solver": "dpm++", "num_inference_steps": 10, "modalities": ("image",)}}
text = {{"temperature": 0.0, "max_tokens": 8, "modalities": ("text",)}}
requests = [
    Request((TextPart((1, 2, 3 + seed)),), SamplingParams(seed=seed, **(text if seed % 2 else image)))
    for seed in range(4)
]

def answers():
    engine = Engine(model, config, in_buckets=True)
    jobs = engine.submit(requests)
    while engine.step():
        pass
    return [job.result for job in jobs]

eager = answers()
compile_rows(model, backend="aot_eager")
torch._dynamo.reset()
first = answers()
compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert compiles > 0
compiled = answers()
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles
for one, other in zip(eager, compiled, strict=True):
    assert [p.ids for p in one.parts if hasattr(p, "ids")] == [p.ids for p in other.parts if hasattr(p, "ids")]
    for a, b in zip(one.images, other.images, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
print("same")
"""


def test_a_compiled_model_gives_what_the_eager_one_does_and_settles() -> None:
    for options in ({}, {"adapter": "linear", "weights": "by_modality"}):
        script = SCRIPT.format(options=options)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip().endswith("same")
