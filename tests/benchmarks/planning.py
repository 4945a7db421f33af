"""Planning a mixture from lengths: time and size a document."""

import tempfile
from pathlib import Path

from tests.benchmarks.corpus import made_up_inputs, plan
from tests.benchmarks.measure import Options, Result, take_turns
from transfusion.artifacts.shards import index_entries
from transfusion.artifacts.tables import load_table

POSITIONS_PER_STEP = 2 * 5 * 256


def run(options: Options) -> list[Result]:
    """An epoch of documents, nine of ten of them captioned images."""
    pairs = options.documents * 9 // 10
    texts = options.documents - pairs
    steps = max(1, (pairs * 29 + texts * 302) // POSITIONS_PER_STEP)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        inputs = made_up_inputs(root, num_pairs=pairs, num_texts=texts)
        config = {"num_steps": steps, "held_out_fraction": 0.001}
        mixture = plan(root, inputs, **config)

        def planned() -> None:
            plan(root, inputs, **config)

        def read() -> None:
            for artifact in inputs.values():
                for entry in index_entries(artifact).values():
                    load_table(artifact.store, entry)

        turns = take_turns({"planned": planned, "read": read}, rounds=min(options.rounds, 2))
        sequences = 10 * steps
        files = [f for f in mixture.manifest.content.files if f.name.startswith("train/")]
        references = sum(
            len(value) // 16
            for file in files
            for value in load_table(mixture.store, file)["references"].to_pylist()
        )
    size = sum(file.bytes for file in files)
    return [
        Result(
            name=f"planning, {options.documents:,} documents, {sequences:,} sequences",
            value=references / turns.median("planned"),
            unit="references/s",
            reference=options.documents / turns.median("read"),
            ratio=references / turns.median("planned") / (options.documents / turns.median("read")),
            against="reading the index tables alone, documents/s",
        ),
        Result(
            name="planning, size of a reference",
            value=size / references,
            unit="bytes",
            reference=16.0,
            ratio=16.0 * references / size,
            bar=0.8,
            against="two words",
        ),
    ]
