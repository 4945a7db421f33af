"""Learning rate and decay of the averaged weights as functions of the step.

Steps count from 0: the first update is step 0.
"""

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


def checkpoint_mean_decay(step: int, *, total_steps: int, every_steps: int, count: int) -> float:
    """Decay by which the average comes to the mean of the weights at the last `count` checkpoints.

    A checkpoint is every `every_steps` and at the end. Before the first of them the average is the weights, and
    between two it stays.
    """
    done, num_checkpoints = step + 1, -(-total_steps // every_steps)
    first = max(num_checkpoints - count, 0)
    if done < min((first + 1) * every_steps, total_steps):
        return 0.0
    if done % every_steps and done != total_steps:
        return 1.0
    before = -(-done // every_steps) - 1 - first
    return before / (before + 1)
