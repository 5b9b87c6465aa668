"""The processes that train together: which of them this one is, and what they exchange.

Everything between processes goes through a `Team`. By default it has one member, and nothing is
exchanged. `processes.launch` starts the processes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from banding_removal.processes.signals import Doing, StopRequest
from banding_removal.processes.watchdog import Watchdog

T = TypeVar("T")


@dataclass(kw_only=True)
class Team:
    """The processes that train together, and this one's place among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among the processes on this machine
    local_size: int = 1  # number of processes on this machine
    stop: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the process that writes files."""
        return self.rank == 0

    def from_first(self, function: Callable[[], T]) -> T:
        """Call a function in rank 0 only, and return its result in all processes."""
        result = [function() if self.is_first else None]
        if self.size > 1:
            with self.exchanging():
                dist.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in all of them."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with self.exchanging():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes; the keys must be the same in all of them."""
        if self.size == 1:
            return values
        # On the CPU, over Gloo, so that no process waits for its GPU.
        total = torch.tensor([values[key] for key in sorted(values)], dtype=torch.float64)
        with self.exchanging():
            dist.all_reduce(total)
        return dict(zip(sorted(values), (total / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.size > 1:
            with self.exchanging():
                dist.all_reduce(torch.zeros(1))

    def exchanging(self) -> AbstractContextManager[None]:
        """The body waits for the other processes."""
        return self.stop.while_doing(Doing.EXCHANGING)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the body in rank 0 first, so that the others find the files it has cached."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @contextmanager
    def naming_causes(self) -> Iterator[None]:
        """Replace a failed collective's error by the reason why another process ended.

        Raises:
            RankError: another process failed, which made a collective fail in this one.
        """
        try:
            yield
        except Exception as error:
            cause = error if self.watchdog is None else self.watchdog.cause(error)
            if cause is error:
                raise
            raise cause from error

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """The network with its gradients averaged over all processes."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def seed_per_rank(self, seed: int) -> None:
        """Seed torch's generators differently in each process; rank 0's stay as they are."""
        if not self.is_first:
            mixed = torch.Generator().manual_seed(seed)
            offsets = torch.randint(2**62, (self.size,), generator=mixed)
            torch.manual_seed(int(offsets[self.rank]))
