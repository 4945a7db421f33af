"""How exactly a run is the same on another number of workers, in bf16, and after a stop in bf16."""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.tiny import model_config
from tests.train.outcomes import assert_same_weights, rows
from tests.train.worlds import MadeUpSource, config, in_world, train
from transfusion.train.stop import StoppedError

pytestmark = pytest.mark.slow
STEPS = 100


class WritingSource(MadeUpSource):
    """Writes down the documents of every micro-batch that this rank reads."""

    def __init__(self, place: Path) -> None:
        super().__init__(lanes=4)
        self._place = place

    def micro_batch(self, step, lane):
        if step < STEPS:
            with self._place.open("a") as file:
                file.writelines(f"{step} {each}\n" for each in self.document_ids(step, lane))
        return super().micro_batch(step, lane)


def hundred_steps(folder):
    settings = config(
        model=model_config("linear").model_copy(update={"depth": 1}),
        steps=STEPS,
        warmup_steps=10,
        checkpoint_every_steps=STEPS,
        validate_every_steps=STEPS,
    )
    source = WritingSource(folder / f"documents-{dist.get_rank()}.txt")
    outcome = train(folder, settings=settings, source=source)
    if dist.get_rank() == 0:
        (folder / "outcome.json").write_text(json.dumps(outcome))


def test_losses_on_one_two_and_four_workers_agree_for_a_hundred_steps(tmp_path):
    losses, documents = {}, {}
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        in_world(workers, hundred_steps, folder)
        outcome = json.loads((folder / "outcome.json").read_text())
        losses[workers] = [row["loss"] for row in rows(folder, outcome)]
        read = [place.read_text().splitlines() for place in folder.glob("documents-*.txt")]
        assert len(read) == workers
        documents[workers] = sorted(itertools.chain(*read))
    assert len(set(documents[1])) == len(documents[1]) == STEPS * 4 * 2
    assert len(losses[1]) == STEPS
    for workers in (2, 4):
        assert documents[workers] == documents[1]
        assert losses[workers][:20] == pytest.approx(losses[1][:20], rel=1e-5)
        assert losses[workers] == pytest.approx(losses[1], rel=1e-3)


def both_precisions(folder):
    """Six steps in fp32, in bf16, and in bf16 with a stop after two."""
    settings = {name: config(precision=name) for name in ("fp32", "bf16")}
    outcomes = {name: train(folder / name, settings=each) for name, each in settings.items()}
    asked = itertools.count()
    with contextlib.suppress(StoppedError):
        train(folder / "stopped", settings=settings["bf16"], stop=lambda: next(asked) >= 1)
    assert not (folder / "stopped/run/result").exists()
    outcomes["stopped"] = train(folder / "stopped", settings=settings["bf16"])
    if dist.get_rank() == 0:
        (folder / "outcomes.json").write_text(json.dumps(outcomes))


def test_bf16_follows_fp32_and_goes_on_after_a_stop_to_the_bit(tmp_path):
    in_world(2, both_precisions, tmp_path)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    found = {name: rows(tmp_path / name, outcome) for name, outcome in outcomes.items()}
    losses = {name: [row["loss"] for row in each] for name, each in found.items()}
    # A rounding to bf16 is up to 0.4%; losses average over many.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-3)
    assert losses["bf16"] != pytest.approx(losses["fp32"], rel=1e-6)
    assert found["stopped"] == found["bf16"]
    stopped, whole = ((tmp_path / name, outcomes[name]) for name in ("stopped", "bf16"))
    assert_same_weights(stopped, whole)
