"""What GPUs could compute at most, so that it can be said what a step makes of them."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

BF16_TFLOPS: Mapping[str, float] = MappingProxyType(
    {
        "GB200": 2500.0,
        "B200": 2250.0,
        "H200": 989.0,
        "H100 PCIe": 756.0,
        "H100 NVL": 835.0,
        "H100": 989.0,
        "A100": 312.0,
        "L40S": 362.0,
    }
)
"""Dense products in bf16, by a part of the device's name; the first that fits. From NVIDIA's data sheets of each,
whose figures "with sparsity" are twice these."""


def peak_tflops(device: torch.device, stated: float | None = None) -> float | None:
    """Of one device: what the profile states, or the table's; None where nothing is known, as of CPUs."""
    if stated is not None or device.type != "cuda":
        return stated
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in BF16_TFLOPS.items() if known in name), None)
