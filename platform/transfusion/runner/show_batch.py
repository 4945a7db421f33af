"""One packed batch, readable: tokens, what each position sees, timesteps, and where there is a loss.

Read from the tensors that the model is given, not from the plan, so that what is shown is what is trained on.
"""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfusion.artifacts.artifact import Artifact, find_artifact
from transfusion.config import validate
from transfusion.diffusion.config import ObjectiveConfig
from transfusion.errors import ArtifactError, SpecError
from transfusion.spec.job import read_job
from transfusion.spec.plan import plan_job
from transfusion.storage.store import open_store
from transfusion.train.config import TrainConfig

if TYPE_CHECKING:
    from transfusion.ingest.reader import MixtureReader
    from transfusion.sequence.batch import PackedBatch
    from transfusion.tokenizer.tokenizer import Tokenizer

SHOWN_CHARACTERS = 38


def parse_place(text: str) -> tuple[int, int]:
    """Step and lane of `STEP` or `STEP:LANE`.

    Raises:
        SpecError: It is neither.
    """
    step, _, lane = text.partition(":")
    if not step.isdecimal() or not (lane or "0").isdecimal():
        raise SpecError(f"--batch: must read STEP or STEP:LANE, such as 0 or 100:1, got {text!r}")
    return int(step), int(lane or "0")


def job_batch(path: Path, overrides: Sequence[str], step: int, lane: int) -> dict[str, Any]:
    """A micro-batch of the first mixture that a job trains on, as its training draws it, run or not.

    Raises:
        ArtifactError: The job trains on no mixture, or it was not made yet.
    """
    job = read_job(path, overrides)
    store = open_store(job.file.store)
    plan = {planned.stage.name: planned for planned in plan_job(job, store)}
    for planned in plan.values():
        config, inputs = planned.stage.config, planned.stage.inputs
        if isinstance(config, TrainConfig) and "mixture" in inputs:
            mixture = plan[inputs["mixture"]]
            uses = mixture.stage.uses
            found = find_artifact(store, uses=uses, fingerprint=mixture.fingerprint)
            if found is None:
                named = shlex.join([str(path), *overrides])
                raise ArtifactError(
                    f"{path}: its mixture was not made yet; make it with: transfusion run {named} --until "
                    f"{mixture.stage.name}"
                )
            drawn = 0 if config.repeat_first_step else step
            return _status(found, config.seed, config.objective, drawn, lane)
    raise ArtifactError(
        f"{path}: --batch is of a job that trains on a mixture, and this one does not"
    )


def batch_status(artifact: Artifact, step: int, lane: int) -> dict[str, Any]:
    """A micro-batch of a mixture, or of a run with that run's own seed and objective.

    `{"step", "lane", "slots": {...}, "sequences": [[{"first", "last", "role", ...}]]}`: a sequence is a list of
    stretches of positions that are alike.

    Raises:
        ArtifactError: The artifact is neither, or the step or lane is not in the plan.
    """
    return _status(*_mixture_of(artifact), step, lane)


def _status(
    mixture: Artifact, seed: int, objective: ObjectiveConfig, step: int, lane: int
) -> dict[str, Any]:
    from transfusion.ingest.reader import MixtureReader
    from transfusion.tokenizer.tokenizer import MODEL, Tokenizer

    reader = MixtureReader(mixture, seed=seed, objective=objective, threads=1)
    for name, given, count in (("step", step, reader.steps), ("lane", lane, reader.lanes)):
        if not 0 <= given < count:
            raise ArtifactError(
                f"--batch: there is no {name} {given}: the plan has 0 to {count - 1}"
            )
    source = next(iter(reader.mixture.sources.values()))
    tokenizer = Tokenizer(mixture.input(source.tokens).input("tokenizer").read(MODEL))
    batch = reader.micro_batch(step, lane)
    keys = iter(reader.document_ids(step, lane))
    sequences = [
        list(_stretches(batch, row, reader, tokenizer, keys)) for row in range(len(batch.token_ids))
    ]
    return {
        "step": step,
        "lane": lane,
        "seed": seed,
        "sequence_length": reader.mixture.sequence_length,
        "image_slots": len(batch.image_weight),
        "images": sum(one["role"] in ("image", "codes") for part in sequences for one in part),
        "text_rows": len(batch.text_weight),
        "text_targets": int(batch.text_weight.sum()),
        "sequences": sequences,
    }


def _mixture_of(artifact: Artifact) -> tuple[Artifact, int, ObjectiveConfig]:
    if artifact.kind == "mixture":
        return artifact, 0, ObjectiveConfig()
    if artifact.kind != "run" or "mixture" not in artifact.manifest.inputs:
        raise ArtifactError(
            f"{artifact.path}: --batch is of a mixture or of a run that was trained on one, "
            f"but this holds {artifact.kind}"
        )
    config = artifact.manifest.config
    objective, faults = validate(ObjectiveConfig, config["objective"], where="config.objective")
    if objective is None:
        raise ArtifactError("; ".join(faults))
    return artifact.input("mixture"), config["seed"], objective


def _stretches(
    batch: "PackedBatch",
    row: int,
    reader: "MixtureReader",
    tokenizer: "Tokenizer",
    keys: Iterator[str],
) -> Iterator[dict[str, Any]]:
    length = batch.token_ids.shape[1]
    ids, places = batch.token_ids[row].tolist(), batch.position_ids[row].tolist()
    seen = _seen(batch, row)
    image_at = _images(batch, row)
    target_at = _targets(batch, row)
    special = reader.special
    marks = {special.bos: "BOS", special.eos: "EOS", special.boi: "BOI", special.eoi: "EOI"}
    begins = [place == 0 for place in places]

    def role(at: int) -> tuple[str, int]:
        if at in image_at:
            return "image", image_at[at]
        if ids[at] == special.pad:
            return "padding", 0
        if special.num_codes and ids[at] >= special.first_code:
            return "codes", 0
        # A mark is a stretch of its own.
        return (marks[ids[at]], at) if ids[at] in marks else ("text", 0)

    document = -1
    numbers = list(itertools.accumulate(begins))
    for (name, number, _), group in itertools.groupby(
        range(length), key=lambda at: (*role(at), numbers[at] if role(at)[0] != "padding" else 0)
    ):
        positions = list(group)
        first, last = positions[0], positions[-1]
        found: dict[str, Any] = {"first": first, "last": last, "role": name}
        if name != "padding":
            if numbers[first] != document:
                document = numbers[first]
                found["document"] = next(keys, "")
            found["sees"] = [seen[first], seen[last]]
            found["targets"] = sum(at in target_at for at in positions)
        if name == "text":
            found["text"] = tokenizer.decode(ids[first : last + 1])
        if name == "codes":
            found["codes"] = [one - special.first_code for one in ids[first : last + 1]]
        if name == "image":
            found |= {
                "slot": number,
                "patches": len(positions),
                "timestep": int(batch.timesteps[number]),
                "weight": float(batch.image_weight[number]),
            }
        if name in marks.values() and first in target_at:
            wanted = target_at[first]
            is_code = special.num_codes and wanted >= special.first_code
            code = f"code {wanted - special.first_code}" if is_code else ""
            found["next"] = code or marks.get(wanted) or tokenizer.decode([wanted])
        yield found


def _seen(batch: "PackedBatch", row: int) -> list[list[list[int]]]:
    """For each query its intervals of keys, the last of each included."""
    bounds = [(batch.lo[row].tolist(), batch.hi[row].tolist())]
    if batch.lo2 is not None and batch.hi2 is not None:
        bounds.append((batch.lo2[row].tolist(), batch.hi2[row].tolist()))
    return [
        [[lo[at], hi[at] - 1] for lo, hi in bounds if hi[at] > lo[at]]
        for at in range(batch.lo.shape[1])
    ]


def _images(batch: "PackedBatch", row: int) -> dict[int, int]:
    """The image slot of each position that is a patch."""
    length = batch.token_ids.shape[1]
    return {
        place - row * length: slot
        for slot, patches in enumerate(batch.image_positions.tolist())
        for place in patches
        if row * length <= place < (row + 1) * length
    }


def _targets(batch: "PackedBatch", row: int) -> dict[int, int]:
    """The token that each position with a text loss is to predict."""
    length = batch.token_ids.shape[1]
    rows = zip(
        batch.text_rows.tolist(),
        batch.text_targets.tolist(),
        batch.text_weight.tolist(),
        strict=True,
    )
    return {
        place - row * length: target
        for place, target, weight in rows
        if weight and row * length <= place < (row + 1) * length
    }


def batch_text(batch: Mapping[str, Any]) -> str:
    """The batch for a terminal: a line a stretch."""
    lines = [
        f"step {batch['step']:,}, lane {batch['lane']}, seed {batch['seed']}: "
        f"{len(batch['sequences'])} sequences of {batch['sequence_length']:,} positions; "
        f"{_images_held(batch)} and {batch['text_targets']:,} of {batch['text_rows']:,} text rows are used",
        _columns("positions", "what", "sees (of a query q)", "text targets"),
    ]
    for number, stretches in enumerate(batch["sequences"]):
        lines.append(f"\nsequence {number}")
        for one in stretches:
            if "document" in one:
                lines.append(f"  {one['document']}")
            lines.append(_line(one))
    return "\n".join(lines)


def _images_held(batch: Mapping[str, Any]) -> str:
    if not batch["image_slots"]:
        return f"{batch['images']} images as codes"
    return f"{batch['images']} of {batch['image_slots']} image slots"


def _line(one: Mapping[str, Any]) -> str:
    first, last, role = one["first"], one["last"], one["role"]
    places = f"{first:,}" if first == last else f"{first:,} to {last:,}"
    if role == "padding":
        return f"    {places}  padding"
    what = role
    if role == "text":
        text = one["text"].replace("\n", " \u21b5 ")
        cut = f"{text[:SHOWN_CHARACTERS]}..." if len(text) > SHOWN_CHARACTERS else text
        what = f'"{cut}"'
    if role == "codes":
        few = ", ".join(str(code) for code in one["codes"][:4])
        what = f"{len(one['codes'])} codes of an image: {few}, ..."
    if role == "image":
        loss = "loss" if one["weight"] else "no loss"
        what = f"image slot {one['slot']}: {one['patches']} patches, t {one['timestep']}, {loss}"
    if "next" in one:
        what += f" -> {one['next']}"
    targets = f"{one['targets']:,}" if one["targets"] else "-"
    return _columns(places, what, _sight(one), targets)


def _columns(*cells: str) -> str:
    widths = (12, 44, 20)
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "    " + "  ".join([*padded, cells[-1]])


def _sight(one: Mapping[str, Any]) -> str:
    """`0 to q` where the end moves with the query, `0 to 74` where all of them see the same."""
    told = []
    for (low, high), (_, end) in zip(*one["sees"], strict=False):
        moves = high == one["first"] and end == one["last"] and one["role"] != "image"
        told.append(f"{low:,} to {'q' if moves else f'{end:,}'}")
    return " and ".join(told)
