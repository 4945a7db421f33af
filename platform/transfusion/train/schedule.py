"""Learning rate and EMA decay as functions of the step. Steps count from 0: the first update is step 0."""

import math


def learning_rate(
    step: int, *, peak: float, lowest: float, warmup_steps: int, total_steps: int
) -> float:
    """Linear warm-up to the peak, then a cosine to the lowest at the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    span = max(total_steps - 1 - warmup_steps, 1)
    progress = min((step - warmup_steps) / span, 1.0)
    return lowest + (peak - lowest) * 0.5 * (1.0 + math.cos(math.pi * progress))


def ema_decay(step: int, *, limit: float) -> float:
    """Decay of the moving average: short memory at first, so that a short run does not keep its start."""
    return min(limit, (1 + step) / (10 + step))
