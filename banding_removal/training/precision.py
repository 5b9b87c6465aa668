"""Arithmetic of a training step: float32, or bfloat16 where that is cheaper than exact."""

import torch

from banding_removal.config.settings import Settings
from banding_removal.errors import ConfigError


def uses_bfloat16(settings: Settings, device: torch.device) -> bool:
    """Whether the networks run under bfloat16 autocast in training steps.

    Their convolutions then are in bfloat16, and the values that go from one to the next; Fourier
    transforms, sums over coils, means and variances, losses and the penalty stay float32. What is
    looked at (validation, pictures, reconstructions) is made in float32 throughout.

    `auto` leaves CPUs out: many have bfloat16 without being any faster with it.

    Raises:
        ConfigError: the GPU cannot do what was asked for.
    """
    if settings.precision == "float32" or (settings.precision == "auto" and device.type != "cuda"):
        return False
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if settings.precision == "auto":
            return False
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"precision=bfloat16: {name} has none; use precision=float32")
    return True
