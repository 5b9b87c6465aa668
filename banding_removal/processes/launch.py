"""Starts the processes of a training, or joins those that torchrun or Slurm has started.

`launch` starts one process per visible GPU (or `nproc` on a CPU) with torch's elastic launcher.
Where RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, as under torchrun, it joins the others
instead.
"""

import logging
import multiprocessing
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Protocol, TypeVar

import torch
from torch import distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from banding_removal.errors import ConfigError
from banding_removal.processes.exit_status import FAILED, REQUEUE, RankError
from banding_removal.processes.signals import SIGNALS
from banding_removal.processes.team import Team
from banding_removal.processes.watchdog import Watchdog

T = TypeVar("T")


class LaunchSettings(Protocol):
    """What `launch` reads from settings."""

    @property
    def device(self) -> str:
        """`auto`, `cpu`, `cuda`, or one GPU such as `cuda:1`."""

    @property
    def nproc(self) -> int | None:
        """Processes on this machine; None: one per visible GPU, or one without a GPU."""

    @property
    def timeout_minutes(self) -> float:
        """Longest wait in a collective operation."""


SettingsT = TypeVar("SettingsT", bound=LaunchSettings)


def launch(function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """Run `function(settings, team)` in as many processes as the settings ask for.

    Args:
        function: at the top level of a module, since other processes import it by name.
        settings: passed to it; also says how many processes to start, on which device.

    Returns:
        The result in rank 0.

    Raises:
        ConfigError: more processes than GPUs, or an incomplete environment.
        RankError: one of the started processes failed.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return _join(function, settings)
    count = process_count(settings)
    if count > 1:
        return _start(function, settings, count)
    team = Team()
    with team.stop.on_signals():
        return function(settings, team)


def process_count(settings: LaunchSettings) -> int:
    """How many processes to start on this machine.

    Raises:
        ConfigError: more than there are GPUs, or several on one named GPU.
    """
    gpus = torch.cuda.device_count() if settings.device in ("auto", "cuda") else 0
    count = settings.nproc or max(1, gpus)
    if count > 1 and settings.device.startswith("cuda:"):
        raise ConfigError(f"device={settings.device} is one GPU, but nproc={count}")
    if count > gpus > 0:
        raise ConfigError(
            f"nproc={count}, but only {gpus} GPU(s) are visible; device=cpu would use the CPU"
        )
    return count


def _start(function: Callable[[SettingsT, Team], T], settings: SettingsT, count: int) -> T:
    """Start `count` processes on this machine, pass signals on to them, wait for their end."""
    for name in ("multiprocessing.api", "agent.server.api"):
        # They would print a second traceback: a process that fails says so itself.
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
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
        # Without SIGTERM and SIGINT: torch's handler kills after 30 s what may still be saving.
        signals_to_handle="SIGHUP,SIGQUIT",
    )
    with _signals_passed_on() as received:
        try:
            return elastic_launch(config, _join)(function, settings)[0]
        except ChildFailedError as error:
            raise _rank_error(error, received) from None


@contextmanager
def _signals_passed_on() -> Iterator[list[str]]:
    """Send signals of the body to all child processes; the names of those received so far."""
    received: list[str] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rank_error(error: ChildFailedError, received: list[str]) -> RankError:
    """The failure of the process that failed first."""
    rank, failure = error.get_first_failure()
    if failure.exitcode > 0:
        return RankError(None, failure.exitcode)  # the process itself has said why
    if received:
        return RankError(f"stopped by {received[0]} before there was anything to save", REQUEUE)
    hint = ": out of memory, perhaps" if failure.exitcode == -signal.SIGKILL else ""
    return RankError(
        f"rank {rank} (process {failure.pid}) was ended by {failure.signal_name()}{hint}", FAILED
    )


def _join(function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """Join the processes that the environment describes, run, leave.

    A failure in any process ends all of them: see `Watchdog`.
    """
    rank, size = _number_in_environment("RANK"), _number_in_environment("WORLD_SIZE")
    team = Team(
        rank=rank,
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
    connect = _store_connector(team)
    on_gpu = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        gpus = torch.cuda.device_count()
        if team.local_rank >= gpus:
            raise ConfigError(f"no GPU for local rank {team.local_rank}: only {gpus} visible here")
        torch.cuda.set_device(team.local_rank)
    with team.stop.on_signals(), Watchdog(rank, size, connect, team.stop) as team.watchdog:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("group", team.watchdog.store),
            rank=rank,
            world_size=size,
            timeout=timedelta(minutes=settings.timeout_minutes),
        )
        result = function(settings, team)
        team.wait()
    dist.destroy_process_group()
    return result


def _store_connector(team: Team) -> Callable[[], dist.Store]:
    """A function that makes a new connection to the key-value store that all processes share.

    The first connection in rank 0 also serves the store, unless torchrun's agent does.
    """
    port = _number_in_environment("MASTER_PORT")
    is_served = not team.is_first or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

    def connect() -> dist.Store:
        nonlocal is_served
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            port,
            is_master=not is_served,
            wait_for_workers=False,
            timeout=timedelta(minutes=5),
        )
        is_served = True
        return dist.PrefixStore(f"banding_removal/{attempt}", store)

    return connect


def _number_in_environment(key: str) -> int:
    try:
        return int(os.environ[key])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"RANK is set, so this is one of several processes; {key} must also be set to a number"
        ) from error
