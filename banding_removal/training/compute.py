"""What a training step computes with: its arithmetic, and the GPU's memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from banding_removal.config.settings import Precision
from banding_removal.errors import ConfigError
from banding_removal.model.predictors import recomputation


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether the networks run under bfloat16 autocast in training steps.

    Convolutions and the values between them are then bfloat16. Fourier transforms, sums over coils,
    means and variances, losses and the gradient penalty stay float32, and so do validation,
    pictures and reconstructions.

    `auto` means float32 on CPUs: many support bfloat16 without being any faster with it.

    Raises:
        ConfigError: bfloat16 is asked for and the GPU does not support it.
    """
    if precision == "float32" or (precision == "auto" and device.type != "cuda"):
        return False
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        if precision == "auto":
            return False
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"precision=bfloat16: {name} does not support it; use precision=float32")
    return True


def fetch(rows: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """The numbers in rows of scalars on one device, by one transfer: the CPU waits only once."""
    values = iter(torch.stack([value for row in rows for value in row.values()]).tolist())
    return [{name: next(values) for name in row} for row in rows]


@contextmanager
def out_of_memory_advice(predictor: nn.Module) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into one that says which setting saves memory.

    Raises:
        ConfigError: the GPU is out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        recomputed, networks = recomputation(predictor)
        if recomputed < networks:
            advice = (
                f"recompute={recomputed} can be raised up to {networks}. So many networks (the "
                f"sensitivity net, then the cascades; code of your own counts as one) then store "
                f"nothing for the backward pass; each of them takes about a third more time"
            )
        else:
            advice = (
                f"recompute={recomputed} already covers all {networks} networks; a smaller "
                f"batch_size, precision=bfloat16, or fewer cascades or chans would help"
            )
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the GPU is out of memory: {advice} ({reason})") from error
