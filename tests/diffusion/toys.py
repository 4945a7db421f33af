"""What solvers and objectives are tried on: every noise that there is, an exact denoiser, a batch to learn."""

import itertools
from typing import get_args

import numpy as np
from pydantic import ValidationError

from tests.tiny import LATENT, NUM_PIECES
from transfusion.diffusion.config import NoiseConfig, ObjectiveConfig, ScheduleName, TargetName
from transfusion.diffusion.schedules import noise_path
from transfusion.diffusion.targets import TARGETS
from transfusion.diffusion.times import timestep_at
from transfusion.sequence.batch import PackedBatch, assemble
from transfusion.sequence.document import Document, ImageInput, ImageSpan, TextSpan
from transfusion.sequence.layout import SequenceLayout
from transfusion.sequence.special import SpecialIds

SPECIAL = SpecialIds.after(NUM_PIECES)
MEAN = np.array([1.5, -1.0, 0.5, 0.0], np.float32)[:, None, None]
"""Of the toy's channels: there is something to learn beside unit noise."""


def allowed():
    for schedule, target in itertools.product(get_args(ScheduleName), get_args(TargetName)):
        try:
            yield NoiseConfig(schedule=schedule, target=target)
        except ValidationError:
            continue


NOISES = list(allowed())
SHIFTED = [NoiseConfig(schedule="straight", target="flow", timestep_shift=s) for s in (1.5, 3.0)]


def called(noise):
    return f"{noise.schedule}-{noise.target}-{noise.timestep_shift:g}"


def exact(noise):
    """The best prediction of the target where the data are unit normal, as a factor of x_t: its regression."""
    path = noise_path(noise.schedule, noise.num_timesteps)
    shares = TARGETS[noise.target](path)
    covariance = shares.noise * path.noise + shares.clean * path.signal
    return covariance / (path.signal**2 + path.noise**2)


def toy_batch(step: int, objective: ObjectiveConfig) -> PackedBatch:
    draw = np.random.default_rng(step)
    sequences = []
    for _ in range(4):
        image = ImageInput(
            latent=MEAN + 0.2 * draw.standard_normal(LATENT, np.float32),
            noise=draw.standard_normal(LATENT, np.float32),
            timestep=timestep_at(draw.random(), objective, limit=objective.num_timesteps),
        )
        text = TextSpan(np.array([3, 4, 5], np.int32))
        sequences.append([Document((text, ImageSpan(2, 2, image)))])
    return assemble(
        sequences,
        layout=SequenceLayout(patch_size=2),
        special=SPECIAL,
        sequence_length=16,
        image_slots=4,
        text_rows=24,
        latent_shape=LATENT,
    )
