"""Steps of a run that made no update, stood out or were passed over, in words; counted from 0, as in `faults/`."""

from collections.abc import Sequence

from transfusion.report.curves import Metrics

LISTED = 20
"""Steps named in a line; the rest are counted."""


def told_steps(metrics: Metrics) -> list[str]:
    """A line for each kind of step at fault, and one for each time that the run went back."""
    marked = {
        name: [int(point.step) - 1 for point in metrics.train.get(name, ())]
        for name in ("skipped", "spike")
    }
    lines = []
    if marked["skipped"]:
        lines.append(f"No update: {_listed(marked['skipped'])}.")
    if marked["spike"]:
        lines.append(f"Loss or gradient norm stood out: {_listed(marked['spike'])}.")
    for point in metrics.train.get("rewound_steps", ()):
        last = int(point.step) - 1
        first = last + 1 - int(point.value)
        lines.append(
            f"At step {last} the run went back to the checkpoint of step {first}; steps {first} to {last} are "
            "passed over."
        )
    return lines


def _listed(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - LISTED:,} more" if len(steps) > LISTED else ""
    named = ", ".join(f"{step:,}" for step in steps[:LISTED])
    return f"step{'s' if len(steps) > 1 else ''} {named}{more}"
