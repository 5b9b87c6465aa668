"""Training in several processes: who they are, what they tell each other, how they are started.

`launch` starts one process per visible GPU (or `nproc` on a CPU) with torch's elastic launcher.
Under torchrun, or wherever RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, it joins the
others instead. Everything between processes goes through a `Team`, which has one member by default.
"""

import logging
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Protocol, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from banding_removal.errors import ConfigError
from banding_removal.processes.exit_status import FAILED, REQUEUE, RankError
from banding_removal.processes.signals import SIGNALS, StopRequest
from banding_removal.processes.watchdog import Watch

T = TypeVar("T")


class Processes(Protocol):
    """What `launch` reads in settings."""

    @property
    def device(self) -> str:
        """auto, cpu, cuda, or one GPU as cuda:1."""

    @property
    def nproc(self) -> int | None:
        """Processes on this machine; None: one per visible GPU, or one."""

    @property
    def timeout_minutes(self) -> float:
        """Longest wait in a collective."""


SettingsT = TypeVar("SettingsT", bound=Processes)


@dataclass(kw_only=True)
class Team:
    """The processes of one training and this one's place among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1  # number of those
    stop: StopRequest = field(default_factory=StopRequest)
    watch: Watch | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def from_first(self, function: Callable[[], T]) -> T:
        """The result of a function that the first process alone runs, in all of them."""
        result = [function() if self.is_first else None]
        if self.size > 1:
            dist.broadcast_object_list(result)
        return result[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank, in all processes."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each figure; all must bring the same ones."""
        if self.size == 1:
            return values
        # On the CPU, over Gloo: nothing waits for a GPU.
        total = torch.tensor([values[key] for key in sorted(values)], dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(sorted(values), (total / self.size).tolist(), strict=True))

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The body runs in the first process, then in the others: they find what it cached."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    @contextmanager
    def naming_causes(self) -> Iterator[None]:
        """Errors of a collective come out as what another process died of."""
        try:
            yield
        except Exception as error:
            cause = error if self.watch is None else self.watch.cause(error)
            if cause is error:
                raise
            raise cause from error

    def shared(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over all processes."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def seed_apart(self, seed: int) -> None:
        """Make torch's generators differ between processes; the first one's stays as it is."""
        if not self.is_first:
            mixed = torch.Generator().manual_seed(seed)
            offsets = torch.randint(2**62, (self.size,), generator=mixed)
            torch.manual_seed(int(offsets[self.rank]))


def launch(function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """Run `function(settings, team)` in as many processes as the settings ask for.

    Args:
        function: importable by name, since other processes look it up.
        settings: what is handed to it; it says how many processes, on which device.

    Returns:
        The first process's result.

    Raises:
        ConfigError: more processes than GPUs.
        RankError: one of the started processes failed; it has said why.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _as_member(function, settings)
    count = process_count(settings)
    if count > 1:
        return _start(function, settings, count)
    team = Team()
    with team.stop.on_signals():
        return function(settings, team)


def process_count(settings: Processes) -> int:
    """How many processes to start on this machine.

    Raises:
        ConfigError: more than there are GPUs, or several on one named GPU.
    """
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") else 0
    count = settings.nproc or max(1, gpus)
    if count > 1 and settings.device.startswith("cuda:"):
        raise ConfigError(f"device={settings.device} is one GPU, and nproc={count} processes")
    if count > gpus > 0:
        raise ConfigError(
            f"nproc={count}, but {gpus} GPUs are visible; device=cpu runs them on the CPU"
        )
    return count


def _start(function: Callable[[SettingsT, Team], T], settings: SettingsT, count: int) -> T:
    """Start `count` processes on this machine, pass signals on to them, wait for their end."""
    for name in ("multiprocessing.api", "agent.server.api"):
        # What a process dies of is said by itself, or below; here it comes as a second traceback.
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    received: list[str] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        received.append(signal.Signals(number).name)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        # Not its own handlers for these: they would kill what is still saving after 30 s.
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        results = elastic_launch(config, _as_member)(function, settings)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said itself what happened
            raise RankError(None, failure.exitcode) from None
        if received:
            raise RankError(f"{received[0]} came before there was anything to save", REQUEUE) from (
                None
            )
        hint = ": out of memory, perhaps" if failure.exitcode == -signal.SIGKILL else ""
        raise RankError(
            f"rank {rank} (process {failure.pid}) was ended by {failure.signal_name()}{hint}",
            FAILED,
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return results[0]


def _as_member(function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """Join the processes that the environment describes, run, leave.

    A failure in any process ends all of them: see `Watch`.
    """
    place = {key: _environment(key) for key in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    local_rank = int(os.environ.get("LOCAL_RANK", place["RANK"]))
    team = Team(
        rank=place["RANK"],
        size=place["WORLD_SIZE"],
        local_rank=local_rank,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    on_gpu = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank}, but {torch.cuda.device_count()} GPUs are visible here"
            )
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // team.local_size))
    with team.stop.on_signals(), Watch(team.rank, team.size, _store(team), team.stop) as watch:
        team.watch = watch
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("group", watch.store),
            rank=team.rank,
            world_size=team.size,
            timeout=timedelta(minutes=settings.timeout_minutes),
        )
        result = function(settings, team)
        team.wait()
    dist.destroy_process_group()
    return result


def _store(team: Team) -> Callable[[], dist.Store]:
    """Makes connections to the key-value store that all processes share."""
    port = _environment("MASTER_PORT")
    by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    served = not team.is_first or by_agent

    def connect() -> dist.Store:
        nonlocal served
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            is_master=not served,
            wait_for_workers=False,
            timeout=timedelta(minutes=5),
        )
        served = True
        return dist.PrefixStore(f"banding_removal/{attempt}", store)

    return connect


def _environment(key: str) -> int:
    try:
        return int(os.environ[key])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"RANK is set, so this is one of several processes; {key} must be set to a number, too"
        ) from error
