"""A compiled model in an engine whose steps are in buckets; in a process of its own, without checks of shapes."""

import subprocess
import sys

import pytest

from tests.tiny import tiny_model
from transfusion.sample.compiled import compile_ahead

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

AHEAD = """
import torch
from tests.tiny import package_config, tiny_model
from transfusion.sample.compiled import compile_ahead, compile_rows
from transfusion.sample.engine import Engine
from transfusion.sample.params import SamplingParams
from transfusion.sample.reading import TextPart
from transfusion.sample.rows import Request

model = tiny_model()
compile_rows(model, backend="aot_eager")
compile_ahead(model, max_positions=64)
compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
# Many more than torch's own limit of eight.
assert compiles == 3 * len([n for n in range(1, 65) if n < 16 or n % (1 << n.bit_length() - 4) == 0]), compiles
engine = Engine(model, package_config(), in_buckets=True, max_rows=2)
for length in range(1, 30):
    kind = "image" if length % 3 == 0 else "text"
    more = {"solver": "dpm++", "num_inference_steps": 10} if kind == "image" else {"max_tokens": 3}
    engine.submit([Request((TextPart((1,) * length),), SamplingParams(modalities=(kind,), **more))])
    engine.step()
while engine.step():
    pass
assert engine.counts.images and engine.counts.tokens
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles
print("settled")
"""


def test_what_is_compiled_ahead_is_all_that_an_engine_meets() -> None:
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("settled")


def test_a_model_whose_patches_have_their_own_weights_is_not_compiled_ahead() -> None:
    with pytest.raises(ValueError, match="by_modality"):
        compile_ahead(tiny_model(weights="by_modality"), max_positions=8)


def test_a_compiled_model_gives_what_the_eager_one_does_and_settles() -> None:
    for options in ({}, {"adapter": "linear", "weights": "by_modality"}):
        script = SCRIPT.format(options=options)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip().endswith("same")
