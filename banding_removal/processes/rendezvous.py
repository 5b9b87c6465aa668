"""The processes of a job find each other: through a key-value store that rank 0 serves.

Any program can listen on the port, also rank 0 of another job. So every job writes under a prefix
of its own, rank 0 leaves the job's identity where the others look for it, and every rank joins only
once.
"""

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

from torch import distributed as dist

from banding_removal.errors import ConfigError
from banding_removal.processes.place import Place
from banding_removal.processes.signals import StoppedEarly, StopRequest

T = TypeVar("T")

ROOT = "banding_removal"
PATIENCE_S = 300.0  # for processes that start later
ANSWER_S = 30.0  # from the connection to the store until rank 0, which serves it, has written to it
NEWS_S = 15.0  # until it is said who is missing
POLL_S = 0.1
# Of the settings, these may differ between the processes of a job.
OF_A_MACHINE = ("workers", "device", "nproc")


def identity_of(place: Place, settings: object) -> str:
    """What the processes of a job have in common, and two jobs have not: a short hash."""
    kept = {key: str(value) for key, value in vars(settings).items() if key not in OF_A_MACHINE}
    return sha256(repr((place.job, place.size, sorted(kept.items()))).encode()).hexdigest()[:16]


def meet(
    place: Place, identity: str, stop: StopRequest, *, attempt: str = "0", served: bool = False
) -> Callable[[], dist.Store]:
    """Serve the store of this job in rank 0, or find it; join.

    Args:
        place: of this process.
        identity: of the job, as in `identity_of`.
        stop: ends the wait.
        attempt: number of a restart by torchrun, whose earlier processes used the same store.
        served: whether torchrun's agent serves the store, also for rank 0.

    Returns:
        A function that makes a new connection to the store.

    Raises:
        ConfigError: the port is taken, or belongs to another job; nobody answers there.
        StoppedEarly: a signal has asked for it.
    """
    where = f"{place.address}:{place.port}"
    serves = place.rank == 0 and not served
    hosted: list[dist.Store] = []  # kept alive with the returned function

    def connect(*, host: bool = False) -> dist.Store:
        store = dist.TCPStore(
            place.address,
            place.port,
            is_master=host,
            wait_for_workers=False,
            timeout=timedelta(seconds=PATIENCE_S),
        )
        if host:
            hosted.append(store)
        return store

    root = _first_connection(place, lambda: connect(host=serves), stop)
    key = f"{ROOT}/{attempt}/job"
    if place.rank == 0:
        root.compare_set(key, "", identity)
    else:
        _until(lambda: root.check([key]), stop, PATIENCE_S if served else ANSWER_S)
    if not root.check([key]) or root.get(key).decode() != identity:
        raise ConfigError(
            f"{where} belongs to another job or program, or rank 0 of this job has other settings: "
            "set another MASTER_PORT for one of two jobs"
        )
    prefix = f"{ROOT}/{attempt}/{identity}"
    if dist.PrefixStore(prefix, root).add(f"joined{place.rank}", 1) > 1:
        raise ConfigError(
            f"there is a rank {place.rank} at {where} already: the job was started twice, or two "
            "processes have the same RANK"
        )
    return lambda: dist.PrefixStore(prefix, connect())


def _first_connection(
    place: Place, connect: Callable[[], dist.Store], stop: StopRequest
) -> dist.Store:
    try:
        store = _patiently(connect, stop, PATIENCE_S + ANSWER_S)
    except dist.DistError as error:
        store = None
        if "EADDRINUSE" in str(error):
            raise ConfigError(
                f"port {place.port} of this machine is in use, perhaps by another job: set another "
                "MASTER_PORT"
            ) from error
    if store is None:
        raise ConfigError(
            f"rank 0 does not answer at {place.address}:{place.port}: it has not started or has "
            "ended, MASTER_ADDR or MASTER_PORT are not its own, or a firewall is between"
        )
    return store


def wait_for_all(store: dist.Store, size: int, stop: StopRequest) -> None:
    """Return when all processes have joined.

    Raises:
        ConfigError: some have not come.
        StoppedEarly: a signal has asked for it.
    """

    def missing() -> list[int]:
        return [rank for rank in range(size) if not store.check([f"joined{rank}"])]

    if not _until(lambda: not missing(), stop, PATIENCE_S, lambda: f"waiting for rank {missing()}"):
        raise ConfigError(
            f"of {size} processes, rank {missing()} did not start within {PATIENCE_S:.0f} s"
        )


def _patiently(function: Callable[[], T], stop: StopRequest, seconds: float) -> T | None:
    """Call a function that may block for long, where it cannot keep this thread from a signal.

    Returns:
        Its result; None: there is none yet.
    """
    result: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            result.append(function())
        except dist.DistError as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="rendezvous", daemon=True)
    thread.start()
    _until(lambda: not thread.is_alive(), stop, seconds, lambda: "waiting for rank 0")
    if errors:
        raise errors[0]
    return result[0] if result else None


def _until(
    condition: Callable[[], bool],
    stop: StopRequest,
    seconds: float,
    news: Callable[[], str] | None = None,
) -> bool:
    """Whether a condition comes true in time."""
    begun = time.monotonic()
    while not condition():
        if stop.signal_name is not None:
            raise StoppedEarly(stop.signal_name)
        waited = time.monotonic() - begun
        if waited > seconds:
            return False
        if news is not None and waited > NEWS_S:
            print(news(), file=sys.stderr, flush=True)  # noqa: T201
            news = None
        time.sleep(POLL_S)
    return True
