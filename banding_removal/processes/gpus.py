"""Which GPU belongs to which of several processes."""

import socket

import torch

from banding_removal.errors import ConfigError
from banding_removal.processes.place import Place


def gpu_of(place: Place, count: int) -> int:
    """The GPU of a process: that of its local rank, or the only one that it sees.

    Raises:
        ConfigError: it sees several, but too few.
    """
    if place.local_rank < count:
        return place.local_rank
    if count == 1:  # as for each task of srun --gpus-per-task=1
        return 0
    raise ConfigError(
        f"no GPU for local rank {place.local_rank}: only {count} visible here. Start fewer "
        "processes, or set LOCAL_RANK to the number of the process on its machine"
    )


def name_of_gpu() -> str:
    """The machine and the current GPU of this process, as no other GPU is called."""
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    return f"{socket.gethostname()} {uuid}"


def check_gpus(names: list[str]) -> None:
    """Refuse processes that share a GPU, which NCCL does not do.

    Args:
        names: of the GPU of each process, different for different GPUs.

    Raises:
        ConfigError: two are the same.
    """
    for rank, name in enumerate(names):
        first = names.index(name)
        if first < rank:
            raise ConfigError(
                f"ranks {first} and {rank} have the same GPU on {name.partition(' ')[0]}: "
                "start one process per GPU"
            )
