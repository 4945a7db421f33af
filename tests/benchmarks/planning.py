"""Planning a mixture from lengths: time, memory, size of a reference, ratio and padding.

Each plan is made in a process of its own, so that its memory is its own:
`python -m tests.benchmarks planning --documents 10000000` is the promise at its full size, and takes minutes; with
`--choosing` the same of documents that filters and the search for near duplicates choose from.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.lengths import CHOOSING, MIX, made_up_index, positions_of
from tests.benchmarks.machine import peak_mib
from tests.benchmarks.measure import Options, Result
from tests.pipeline import make
from transfusion.artifacts.artifact import Artifact, open_artifact
from transfusion.artifacts.tables import load_table
from transfusion.storage.store import open_store

SECONDS_A_DOCUMENT = 180 / 10**7
MIB_A_DOCUMENT = 4096 / 10**7
FIXED_MIB = 400
"""Of a process that has imported torch, Arrow and what tests need."""


def run(options: Options) -> list[Result]:
    """An epoch of documents, four of five of them captioned images; and of a fifth as many."""
    choosing = options.choosing
    whole, part = (
        planned(count, choosing=choosing) for count in (options.documents, options.documents // 5)
    )
    seconds, references = whole["cpu_s"], whole["references"]
    named = f"planning, {options.documents:,} documents{' that are chosen from' * choosing}"
    memory = whole["peak_mib"] - FIXED_MIB
    growth = (seconds - part["cpu_s"]) / (0.8 * options.documents)
    return [
        _at_most(named, seconds / options.documents * 1e6, "us CPU/document", 18.0, "180 s for 10^7"),
        _at_most(f"{named}, peak memory", memory, "MiB over a bare process",
                 max(MIB_A_DOCUMENT * options.documents - FIXED_MIB, 200.0), "4 GiB for 10^7"),
        _at_most("planning, size of a reference", whole["bytes"] / references, "bytes", 16.0, "two words"),
        _at_most("planning, ratio error in windows of 64", whole["largest_ratio_error_in_64"] * 100, "%", 0.5,
                 "0.5%"),
        _at_most("planning, ratio error overall", whole["ratio_error"] * 100, "%", 0.01, "0.01%"),
        _at_most("planning, padding", whole["padding"] * 100, "%", 1.0, "1%"),
        _at_most("planning, cost of one more document", growth * 1e6, "us CPU/document",
                 1.25 * seconds / options.documents * 1e6, "a quarter over the mean: linear"),
        *(
            Result(name=f"planning, taken out: {reason}", value=count, unit="documents")
            for reason, count in sorted(whole["filtered"].items())
        ),
    ]  # fmt: skip


def _at_most(name: str, value: float, unit: str, limit: float, against: str) -> Result:
    ratio = limit / max(value, limit / 1000)
    return Result(
        name=name, value=value, unit=unit, reference=limit, ratio=ratio, bar=1.0, against=against
    )


def planned(documents: int, *, choosing: bool = False, **changed: Any) -> dict[str, Any]:
    """Figures of one plan; `changed` goes to the mixture's config."""
    chosen = CHOOSING if choosing else {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        pairs = documents * 4 // 5
        inputs = made_up_index(
            root, num_pairs=pairs, num_texts=documents - pairs, look_alikes=choosing
        )
        order = {
            "root": str(root),
            "inputs": {role: f"{artifact.path}/manifest.json" for role, artifact in inputs.items()},
            "config": {
                **MIX,
                **chosen,
                "num_steps": positions_of(documents) // (4096 * 64),
                **changed,
            },
        }
        command = [sys.executable, "-m", "tests.benchmarks.planning", json.dumps(order)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])


def _measure(order: dict[str, Any]) -> dict[str, Any]:
    root = Path(order["root"])
    store = open_store(str(root))
    inputs = {role: open_artifact(store, path) for role, path in order["inputs"].items()}
    began, cpu_began = time.perf_counter(), time.process_time()
    mixture = make(root, "data_pipelines.mix", order["config"], inputs)
    figures = {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_began,
        "peak_mib": peak_mib(),
    }
    outcomes = mixture.manifest.content.outcomes
    assert outcomes is not None
    filtered = {"filtered": dict(outcomes.filtered)}
    return figures | mixture.manifest.content.metrics | _sizes(mixture) | filtered


def _sizes(mixture: Artifact) -> dict[str, float]:
    files = [file for file in mixture.manifest.content.files if file.name.startswith("train/")]
    references = sum(
        load_table(mixture.store, file)["references"].combine_chunks().buffers()[2].size // 16
        for file in files
    )
    statistics = mixture.metadata["statistics"].values()
    positions = sum(source["positions"] for source in statistics)
    weights = sum(source["weight"] for source in mixture.metadata["sources"].values())
    error = max(
        abs(
            mixture.metadata["statistics"][name]["positions"] / positions
            - source["weight"] / weights
        )
        for name, source in mixture.metadata["sources"].items()
    )
    size = sum(file.bytes for file in files)
    return {"bytes": size, "references": references, "ratio_error": error}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
