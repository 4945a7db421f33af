"""Pictures that are like photographs where it matters."""

import numpy as np


def picture(seed: int, side_px: int = 256) -> np.ndarray:
    """Detail that falls off with frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    across = np.fft.fftfreq(side_px)
    frequency = np.hypot(across[:, None], across[None]) + 1 / side_px
    spectrum = np.fft.fft2(rng.standard_normal((side_px, side_px, 3)), axes=(0, 1))
    pixels = np.fft.ifft2(spectrum / frequency[..., None], axes=(0, 1)).real
    return np.clip(128 + 48 * pixels / pixels.std(), 0, 255).astype(np.uint8)
