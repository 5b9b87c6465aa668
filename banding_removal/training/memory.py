"""How many of the predictor's networks keep their values for the backward pass: what memory allows.

What is not kept is made again: the same numbers, for about a third more time of those networks.
"""

import logging
from pathlib import Path

import torch

from banding_removal.config.settings import Settings
from banding_removal.data.batch import Batch
from banding_removal.model.predictor import Predictor

log = logging.getLogger(__name__)

# Of the memory that is free before a step; the rest is for gradients, the adversary, and the
# temporary values of single layers.
USABLE = 0.6


class Recomputation:
    """Sets `Predictor.recomputed` for each batch as `Settings.recompute` says.

    Args:
        settings: of the run.
        predictor: that the batches go through.
        processes: that share the machine's memory, where the device is a CPU.
    """

    def __init__(self, settings: Settings, predictor: Predictor, processes: int = 1) -> None:
        self._wanted = settings.recompute
        self._predictor = predictor
        self._processes = processes
        self._told = 0

    def prepare(self, batch: Batch, *, bfloat16: bool) -> None:
        """Choose for the step that this batch is in."""
        networks = 1 + len(self._predictor.cascades)
        if self._wanted == "auto":
            kept = self._predictor.kept_bytes(batch.masked_kspace, 2 if bfloat16 else 4)
            free = free_bytes(batch.masked_kspace.device) // self._processes
            chosen = fewest_recomputed(kept, int(USABLE * free))
        else:
            chosen = networks if self._wanted == "all" else 0
        if chosen > self._told:
            log.info(
                "%d of %d networks are run again in the backward pass to save memory",
                *(chosen, networks),
            )
            self._told = chosen
        self._predictor.recomputed = chosen


def fewest_recomputed(kept: list[int], budget: int) -> int:
    """How many networks, from the first on, are to be recomputed so that `budget` bytes suffice.

    One network at a time is made again. Where nothing suffices, all are recomputed.

    Args:
        kept: bytes that each network keeps.
        budget: bytes for all of them together.
    """
    for count in range(len(kept) + 1):
        at_once = max([0, *kept[1 : max(1, count)]])
        if sum(kept[count:]) + at_once <= budget:
            return count
    return len(kept)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had: of a GPU (with what PyTorch holds unused), or of the machine.

    Where the system does not tell (other than Linux), as good as unlimited.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    table = Path("/proc/meminfo")
    if not table.exists():
        return 2**62
    lines = dict(line.split(":") for line in table.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
