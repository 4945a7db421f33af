"""How far images and captions of striped objects are from what they should be, in degrees.

Where nothing can be read, the error is what a blind guess makes on average, a quarter of the turn: 90 degrees of
hue, 45 of direction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NEAR_DEG = 15.0
"""A hue or a direction this near counts as right."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one image or caption."""

    hue_deg: float
    """At most 180."""
    direction_deg: float
    """At most 90."""
    read: bool
    """Whether both could be read."""


def errors_of(
    hue_deg: float | None,
    direction_deg: float | None,
    *,
    true_hue_deg: float,
    true_direction_deg: float,
) -> Errors:
    """Compares what was read with what should be there."""
    return Errors(
        hue_deg=_apart(hue_deg, true_hue_deg, turn_deg=360.0),
        direction_deg=_apart(direction_deg, true_direction_deg, turn_deg=180.0),
        read=hue_deg is not None and direction_deg is not None,
    )


def error_metrics(prefix: str, errors: Sequence[Errors]) -> dict[str, float]:
    """Means such as `<prefix>.hue_error_deg`, and shares: `hue_within_15`, `direction_within_15`, and `read`."""
    if not errors:
        return {}
    return {
        f"{prefix}.hue_error_deg": _mean([one.hue_deg for one in errors]),
        f"{prefix}.hue_within_15": _mean([one.hue_deg <= NEAR_DEG for one in errors]),
        f"{prefix}.direction_error_deg": _mean([one.direction_deg for one in errors]),
        f"{prefix}.direction_within_15": _mean([one.direction_deg <= NEAR_DEG for one in errors]),
        f"{prefix}.read": _mean([one.read for one in errors]),
    }


def _apart(read_deg: float | None, true_deg: float, *, turn_deg: float) -> float:
    if read_deg is None:
        return turn_deg / 4
    apart = (read_deg - true_deg) % turn_deg
    return min(apart, turn_deg - apart)


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values)
