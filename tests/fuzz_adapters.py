"""Give the adapters files that nobody would write, and see that each comes to rows or to an error that names it.

    python -m tests.fuzz_adapters --minutes 10 [--seed 0] [--only text] [--case text:12345]

An input follows from its adapter and number alone. Children read them, a few hundred each, so that what ends a
process is found too. A fault is: a process that dies, does not end or takes over a gigabyte; an exception other
than an ArtifactError that names the file; a row that is neither a document nor rejected with a reason; two rows of
one key; a row that is in the file and in nothing that comes out of it, and is not told of. `--case` shows one.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from data_pipelines.documents import Document, Rejected, Text
from data_pipelines.sources.source import SOURCES, ShardDescriptor, source_module
from tests.documents import picture
from tests.fuzz_cases import CASES, Case
from transfusion.config import validate
from transfusion.errors import ArtifactError

INPUTS_A_CHILD = 300
MOST_SECONDS = 30.0
"""For one file of a few kilobytes."""
MOST_MEMORY_KIB = 2**20
"""That an input may add to its process at the peak."""


class Outcome(NamedTuple):
    """What became of an input."""

    number: int
    told: str
    """`documents`, `with rejects`, `refused`, `empty`; or a fault, then more than one line."""
    reasons: dict[str, int]


def run(case: Case, folder: Path) -> tuple[str, dict[str, int]]:
    """Reads an input as a job would; what it came to, and rejected rows by reason.

    Raises:
        AssertionError: It came to what it must not.
    """
    images = folder / "images"
    place = (images if case.config.get("path") == "IMAGES" else folder) / case.name
    place.write_bytes(case.data)
    config = {k: str(images) if v == "IMAGES" else v for k, v in case.config.items()}
    try:
        rows = _rows(case.source, {"path": str(place), **config})
    except ArtifactError as error:
        refused = str(error)
        refused.encode()
        if case.name not in refused:
            raise AssertionError(f"names no file: {refused}") from error
        return "refused", {}
    finally:
        place.unlink()
    keys = [row.key for row in rows if isinstance(row, Document)]
    assert len(set(keys)) == len(keys), "two documents of one key"
    for row in rows:
        row.key.encode()
        if isinstance(row, Rejected):
            assert row.reason.isidentifier(), row
            row.detail.encode()
            continue
        assert row.segments, "a document of nothing"
        # Image bytes are looked at by the decoder.
        assert all(s.text.encode() for s in row.segments if isinstance(s, Text)), "an empty text"
        json.dumps(dict(row.metadata), allow_nan=False).encode()
    case.check(rows)
    reasons = Counter(row.reason for row in rows if isinstance(row, Rejected))
    if not rows:
        return "empty", {}
    return "with rejects" if reasons else "documents", dict(reasons)


def _rows(source: str, config: dict[str, object]) -> list[Document | Rejected]:
    module = source_module(SOURCES[source])
    made, faults = validate(module.STAGE.config, config, where="config")
    assert made is not None, faults
    return [
        row
        for shard in module.list_shards(made)
        for row in module.read(
            made, ShardDescriptor.from_json(json.loads(json.dumps(shard.to_json())))
        )
    ]


def draw(adapter: str, number: int) -> Case:
    """The input of a number."""
    return CASES[adapter](random.Random(f"{adapter}:{number}"))


def prepare(folder: Path) -> None:
    """Makes a folder with the images that rows name."""
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))


def _child(adapter: str, first: int, folder: Path, results: Connection) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)
    folder.mkdir()
    for number in range(first, first + INPUTS_A_CHILD):
        results.send(number)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            # A name of its own: digests of files are remembered by name, size and time.
            case = draw(adapter, number)
            own = folder / str(number)
            prepare(own)
            told, reasons = run(case, own)
            shutil.rmtree(own)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < MOST_MEMORY_KIB, f"{grown:,} KiB for {len(case.data):,} bytes"
        except Exception:
            told, reasons = traceback.format_exc(), {}
        results.send(Outcome(number, told, reasons))
    results.send(None)


def child(adapter: str, first: int) -> list[Outcome]:
    """Runs some inputs in a process of their own; the last one is a fault where it did not survive them."""
    context = multiprocessing.get_context("forkserver")
    near, far = context.Pipe(duplex=False)
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        process = context.Process(target=_child, args=(adapter, first, Path(folder, "work"), far))
        process.start()
        far.close()
        number = first
        try:
            while near.poll(MOST_SECONDS) and (said := near.recv()) is not None:
                if isinstance(said, Outcome):
                    found.append(said)
                else:
                    number = said
            else:
                if len(found) < INPUTS_A_CHILD:
                    found.append(Outcome(number, f"took more than {MOST_SECONDS:g} s\n", {}))
                    process.kill()
        except EOFError:
            process.join()
            found.append(Outcome(number, f"ended its process: {process.exitcode}\n", {}))
        process.join()
    return found


def fuzz(seconds: float, seed: int, adapters: list[str]) -> int:
    """Fuzzes the adapters in turn and prints what became of the inputs; the number of faults."""
    outcomes: dict[str, Counter[str]] = {adapter: Counter() for adapter in adapters}
    reasons: dict[str, Counter[str]] = {adapter: Counter() for adapter in adapters}
    spent: Counter[str] = Counter()
    faults = 0
    next_ones = dict.fromkeys(adapters, seed * 10**9)
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        adapter = min(adapters, key=lambda name: spent[name])
        started = time.monotonic()
        found = child(adapter, next_ones[adapter])
        spent[adapter] += round(1000 * (time.monotonic() - started))
        next_ones[adapter] = found[-1].number + 1
        for outcome in found:
            wrong = "\n" in outcome.told
            outcomes[adapter]["FAULT" if wrong else outcome.told] += 1
            reasons[adapter].update(outcome.reasons)
            if wrong:
                faults += 1
                print(f"--case {adapter}:{outcome.number}: {outcome.told}", flush=True)
    for adapter in adapters:
        told = ", ".join(f"{count:,} {what}" for what, count in outcomes[adapter].most_common())
        named = ", ".join(f"{count:,} {what}" for what, count in reasons[adapter].most_common())
        print(
            f"{adapter}: {outcomes[adapter].total():,} files in {spent[adapter] / 1000:.0f} s: {told}"
        )
        print(f"    rejected rows: {named}")
    total = sum(counts.total() for counts in outcomes.values())
    print(f"{total:,} files, {faults} faults")
    return faults


def show(name: str) -> None:
    """Runs one input here and prints all there is to it."""
    adapter, _, number = name.partition(":")
    case = draw(adapter, int(number))
    print(case.name, case.config, len(case.data), case.data[:4000], sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        print(run(case, Path(folder)))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(CASES), action="append")
    parser.add_argument("--case")
    given = parser.parse_args()
    if given.case:
        show(given.case)
        return
    raise SystemExit(bool(fuzz(60 * given.minutes, given.seed, given.only or list(CASES))))


if __name__ == "__main__":
    main()
