"""Kill training at chosen points, run it again, and compare with an undisturbed run, to the bit.

    python -m tests.chaos_train [--rounds 20] [--seed 0]

Every round is a fresh run of two ranks over gloo. One or two attempts at it are killed: rank 0, the other, or
both at once (as when a machine goes), in an update, in backward, in a save, in an upload or right before the
commit, with checkpoints beside training or not. The last attempt is left alone. `tests.chaos` kills whole jobs
at random moments, Ray's daemons and controller included.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from tests.train.worlds import config, train
from transfusion.resources import TrainResources
from transfusion.storage.local import LocalStore
from transfusion.train import step
from transfusion.train.checkpoints import checkpoint
from transfusion.train.checkpoints.checkpoint import Checkpoints
from transfusion.train.state import TrainingState

POINTS: dict[str, tuple[Any, str]] = {
    "update": (TrainingState, "update"),
    "backward": (step, "combine"),
    "save": (checkpoint, "save"),
    "upload": (LocalStore, "put_file"),
    "commit": (Checkpoints, "_commit"),
}
"""Where a process can be killed: the function that is on the way there."""

WITHIN_S = 300.0


class Kill(NamedTuple):
    """Who is killed, where, and at which call there."""

    ranks: tuple[int, ...]
    point: str
    call: int


def arm(kill: Kill) -> None:
    """Replaces the point's function by one that kills this process in its time."""
    owner, name = POINTS[kill.point]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != kill.call:
            return real(*arguments, **named)
        if kill.point == "backward":
            made = real(*arguments, **named)
            made.register_hook(die)
            return made
        if kill.point in ("save", "upload"):
            real(*arguments, **named)
        return die()

    setattr(owner, name, deadly)


def member(rank: int, meeting: str, folder: Path, kill: Kill | None, beside: bool) -> None:
    """One rank of an attempt, in its own process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if kill is not None and rank in kill.ranks:
        arm(kill)
    if kill is not None:
        # The other rank's complaint about the one that is gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    outcome = train(
        folder,
        settings=config(steps=8, checkpoint_every_steps=2, validate_every_steps=4),
        resources=TrainResources(checkpoint_async=beside),
    )
    if rank == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))
    dist.barrier()
    # Nothing of the parent's is torn down here.
    os._exit(0)


def attempt(folder: Path, kill: Kill | None, *, beside: bool) -> bool:
    """Runs both ranks; whether they came to the end."""
    processes = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        ranks = [
            processes.Process(target=member, args=(rank, f"{place}/meeting", folder, kill, beside))
            for rank in (0, 1)
        ]
        for one in ranks:
            one.start()
        end = time.monotonic() + WITHIN_S
        while any(one.is_alive() for one in ranks) and time.monotonic() < end:
            if any(one.exitcode not in (None, 0) for one in ranks):
                # As Ray does with the rest of a group.
                for one in ranks:
                    one.kill()
            time.sleep(0.05)
        for one in ranks:
            one.kill()
            one.join()
    return all(one.exitcode == 0 for one in ranks)


def result(folder: Path) -> dict[str, str]:
    """Digests of what a run made: weights, their average, losses step by step."""
    outcome = json.loads((folder / "outcome.json").read_text())
    return {file["name"]: file["digest"] for file in outcome["files"] if file["digest"]}


def main() -> None:
    """Runs the rounds from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        calm = Path(place) / "calm"
        calm.mkdir()
        assert attempt(calm, None, beside=False)
        expected = result(calm)
        recovered = kills = 0
        for number in range(options.rounds):
            folder = Path(place) / f"round-{number}"
            folder.mkdir()
            beside, told = draw.random() < 0.5, []
            for _ in range(draw.choice((1, 2))):
                point = list(POINTS)[(number + len(told)) % len(POINTS)]
                # A commit is rank 0's alone.
                ranks = (0,) if point == "commit" else draw.choice(((0,), (1,), (0, 1)))
                kill = Kill(ranks, point, draw.choice((1, 2, 3)))
                died = not attempt(folder, kill, beside=beside)
                kills += died
                told.append(f"{point} {kill.call} of {ranks}{'' if died else ' (not reached)'}")
                if not died:
                    break
            finished = attempt(folder, None, beside=beside)
            same = finished and result(folder) == expected
            recovered += same
            saved = "beside" if beside else "paused"
            verdict = "equal" if same else "DIFFERS" if finished else "FAILED"
            print(f"{verdict:7} round {number:2}, {saved}: {', then '.join(told)}", flush=True)
    print(f"{kills} kills in {options.rounds} rounds, {recovered} came to the undisturbed result")
    sys.exit(0 if recovered == options.rounds else 1)


if __name__ == "__main__":
    main()
