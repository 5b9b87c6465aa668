"""Starts the processes of a training, or joins those that torchrun or Slurm has started.

`launch` starts one process per visible GPU (or `nproc` on a CPU) with torch's elastic launcher.
Where torchrun, srun or mpirun has started several processes (`place`), it joins the others instead.
"""

import logging
import multiprocessing
import os
import signal
import sys
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
from banding_removal.processes.console import unfailing_console
from banding_removal.processes.exit_status import (
    FAILED,
    REQUEUE,
    RankError,
    describe_error,
    exit_code,
)
from banding_removal.processes.gpus import check_gpus, gpu_of, name_of_gpu
from banding_removal.processes.place import Place, place_in
from banding_removal.processes.rendezvous import identity_of, meet, wait_for_all
from banding_removal.processes.signals import StoppedEarly, set_handlers
from banding_removal.processes.stuck import Others, ending_waits, leave
from banding_removal.processes.team import Team
from banding_removal.processes.watchdog import Watchdog

log = logging.getLogger(__name__)

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
    place = place_in(os.environ)
    if place is not None:
        return _run_at(place, function, settings)
    count = process_count(settings)
    if count > 1:
        return _start(function, settings, count)
    team = Team()
    with team.stop.on_signals(), ending_waits(team.stop, Others()):
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
        # Without SIGTERM, SIGINT and SIGHUP: torch's handler kills after 30 s what may still be
        # saving, and sets itself over nohup.
        signals_to_handle="SIGQUIT",
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
                os.kill(child.pid, signal.SIGCONT)  # a stopped process would not react

    before = set_handlers(pass_on)
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
    hint = ": perhaps it ran out of memory" if failure.exitcode == -signal.SIGKILL else ""
    return RankError(
        f"rank {rank} (process {failure.pid}) was ended by {failure.signal_name()}{hint}", FAILED
    )


def _join(function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """What a started process does: join the others, run, leave."""
    place = place_in(os.environ)
    assert place is not None, "torch's launcher describes it"
    try:
        with unfailing_console():
            return _run_at(place, function, settings)
    except (ConfigError, StoppedEarly) as error:  # before the watchdog
        print(f"\n{describe_error(error)}", file=sys.stderr)  # noqa: T201
        leave(exit_code(error))


def _run_at(place: Place, function: Callable[[SettingsT, Team], T], settings: SettingsT) -> T:
    """Join the processes among which this one has its place, run, leave.

    A failure in any process ends all of them: see `Watchdog`.
    """
    if place.size > 1 and settings.device.startswith("cuda:"):
        raise ConfigError(
            f"device={settings.device} is one GPU, but there are {place.size} processes"
        )
    if settings.nproc not in (None, 1, place.local_size):
        log.warning("nproc=%d has no effect: the processes are started already", settings.nproc)
    team = Team(
        rank=place.rank,
        size=place.size,
        local_rank=place.local_rank,
        local_size=place.local_size,
    )
    on_gpu = settings.device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(gpu_of(place, torch.cuda.device_count()))
    others = Others()
    with team.stop.on_signals(), ending_waits(team.stop, others):
        connect = meet(
            place,
            identity_of(place, settings),
            team.stop,
            attempt=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
            served=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
        with Watchdog(place.rank, place.size, connect, team.stop, others) as team.watchdog:
            with team.naming_causes():
                wait_for_all(team.watchdog.store, place.size, team.stop)
                with team.exchanging():
                    dist.init_process_group(
                        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                        store=dist.PrefixStore("group", team.watchdog.store),
                        rank=place.rank,
                        world_size=place.size,
                        timeout=timedelta(minutes=settings.timeout_minutes),
                    )
                if on_gpu:
                    check_gpus(team.gather(name_of_gpu()))
            result = function(settings, team)
            team.wait()
    dist.destroy_process_group()
    return result
