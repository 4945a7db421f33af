"""Runs the benchmarks: `python -m tests.benchmarks [NAME ...] [--rounds N] [--documents N] [--choosing]`.

Prints a table, writes `benchmarks.json`, and exits with 1 when a bar does not hold. Everything runs in this one
process on one thread, timed in its CPU seconds: two to three minutes, as long again beside
transfusion-pytorch.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path

# Before torch is loaded, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

NAMES = (
    "train_step",
    "train_rival",
    "train_loop",
    "attention",
    "loader",
    "sampler",
    "mixing",
    "encode",
    "decode",
    "planning",
)


def main() -> int:
    """Runs what is named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all when left out"
    )
    parser.add_argument("--rounds", type=int, default=6, help="turns of each side")
    parser.add_argument(
        "--documents", type=int, default=100_000, help="of the mixture that is planned"
    )
    parser.add_argument(
        "--choosing", action="store_true", help="among them, by filters and near duplicates"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(NAMES)}")

    from tests.benchmarks import rival
    from tests.benchmarks.machine import describe
    from tests.benchmarks.measure import Options
    from tests.benchmarks.table import show

    machine = describe()
    options = Options(
        rounds=arguments.rounds, documents=arguments.documents, choosing=arguments.choosing
    )
    results = []
    for name in arguments.names or NAMES:
        began = time.perf_counter()
        results += importlib.import_module(f"tests.benchmarks.{name}").run(options)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    record = {
        "machine": machine | {"load_average_after": os.getloadavg()[0]},
        "rounds": options.rounds,
        "results": [result.to_json() for result in results],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    show(results, title=f"{machine['cpu']}, torch {machine['torch']}, commit {machine['commit']}")
    if not rival.is_here():
        print(rival.NOTICE)
    failed = [result for result in results if result.holds is False]
    print(f"{arguments.out}: {len(results)} results, {len(failed)} below their bar")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
