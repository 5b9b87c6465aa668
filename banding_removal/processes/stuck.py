"""Signals end a process also where its main thread waits for something that does not come.

A signal asks the training to stop after the current step (`signals`). Python calls the handler in
the main thread, which cannot react while it waits in a collective operation, and would only go on
waiting for its loading processes. So a second thread learns of the signal from a pipe that the
interpreter writes to at once (signal.set_wakeup_fd), and ends the process if the wait is in vain:

* for loading processes, or for other processes none of which is at work: after `GRACE_S`;
* before there is anything to save, for instance while many files are indexed: after `GRACE_S`;
* for a process that has been silent for `SILENT_S`, whatever this one was doing;
* never while this process, or the one that it waits for, writes a checkpoint, trains a step or
  validates: that ends by itself and then stops, however long it takes.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from banding_removal.processes.exit_status import describe_error, exit_code
from banding_removal.processes.signals import SIGNALS, Doing, Stopped, StoppedEarly, StopRequest

log = logging.getLogger(__name__)

# Together, these let a process end within five seconds, also if another one, which may serve the
# store, is lost at the moment of the signal and its last heartbeat is noticed a second later.
GRACE_S = 2.5
SEEN_S = 0.5  # a wait must look vain this long: this process's own threads may be late, too
SILENT_S = 3.0  # without a heartbeat, of which there is one a second
POLL_S = 0.25
TELL_S = 0.25  # for other processes to be told


class StoppedWaiting(Stopped):
    """A signal has ended a wait in vain; the state was not saved."""

    def __init__(self, signal_name: str, awaited: str) -> None:
        super().__init__(signal_name, 0)
        self.awaited = awaited

    def __str__(self) -> str:
        return (
            f"stopped by {self.signal_name} while waiting in vain for {self.awaited}; the steps "
            "since the last checkpoint are lost"
        )


class Others:
    """What the other processes are doing, by rank, and when each of them last sent a heartbeat."""

    def __init__(self) -> None:
        self.heard: dict[int, tuple[Doing, float]] = {}
        self.names: dict[int, str] = {}  # process and machine
        # Tells the others that this process ends, and why.
        self.tell: Callable[[int, str], object] = lambda _code, _message: None

    def silent(self) -> str | None:
        """The process that has stopped sending heartbeats, if there is one."""
        late = time.monotonic() - SILENT_S
        ranks = [rank for rank, (_, when) in self.heard.items() if when < late]
        if not ranks:
            return None
        return f"rank {ranks[0]} ({self.names.get(ranks[0], '?')}), which no longer responds"

    def are_working(self) -> bool:
        """Whether one of them is at work that ends by itself."""
        return any(doing in (Doing.WORKING, Doing.SAVING) for doing, _ in self.heard.values())


def waits_in_vain(stop: StopRequest, others: Others) -> str | None:
    """What the main thread waits for, if that keeps it from where it would stop by itself."""
    if stop.doing is Doing.SAVING:
        return None
    silent = others.silent()
    if silent is not None or time.monotonic() - stop.since < GRACE_S:
        return silent
    if stop.doing is Doing.STARTING and not stop.has_worked:
        return "the start"
    if stop.doing is Doing.LOADING:
        return "loading processes"
    if stop.doing is Doing.EXCHANGING and not others.are_working():
        return "another process"
    return None


@contextmanager
def ending_waits(stop: StopRequest, others: Others) -> Iterator[None]:
    """End this process in the body if it is asked to stop and waits in vain.

    Outside the main thread, where Python does not handle signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    ended = threading.Event()
    arguments = (ours, stop, others, ended)
    thread = threading.Thread(target=_watch, args=arguments, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        with contextlib.suppress(BlockingIOError):  # full: the thread does not wait for it
            theirs.send(b"\0")  # wakes the thread
        theirs.close()
        thread.join()
        ours.close()


def _watch(pipe: socket.socket, stop: StopRequest, others: Others, ended: threading.Event) -> None:
    """The thread: wait for a signal, then look whether the main thread waits in vain."""
    asked: float | None = None
    vain_since: float | None = None
    pipe.settimeout(1.0)
    while not ended.is_set():
        if asked is None:
            try:
                numbers = pipe.recv(1)
            except TimeoutError:
                numbers = b""
            if numbers and numbers[0] in SIGNALS:
                stop.signal_name = stop.signal_name or signal.Signals(numbers[0]).name
            if stop.signal_name is not None:  # also where another process was asked
                asked = time.monotonic()
            continue
        now = time.monotonic()
        awaited = waits_in_vain(stop, others)
        vain_since = (vain_since or now) if awaited else None
        if awaited and now - asked > GRACE_S and now - (vain_since or now) > SEEN_S:
            _end(stop, others, awaited)
        ended.wait(POLL_S)


def _end(stop: StopRequest, others: Others, awaited: str) -> None:
    assert stop.signal_name is not None
    error: Stopped = StoppedEarly(stop.signal_name)
    if stop.has_worked:
        error = StoppedWaiting(stop.signal_name, awaited)
    end_process(exit_code(error), describe_error(error) or "", tell=others.tell)


def end_process(
    code: int,
    message: str,
    *,
    on_console: bool = True,
    tell: Callable[[int, str], object] | None = None,
) -> None:
    """End this process from another thread, whatever the main thread is waiting for.

    Args:
        code: the exit status.
        message: for the log.
        on_console: whether to print it, too.
        tell: tells other processes; it gets `TELL_S` for that.
    """
    if tell is not None:
        teller = threading.Thread(target=tell, args=(code, message), daemon=True)
        teller.start()
        teller.join(TELL_S)
    prefix = "" if message.startswith("stopped by") else "the run ended: "
    log.error("%s%s", prefix, message)
    if on_console:
        print(f"\n{message}", file=sys.stderr, flush=True)  # noqa: T201
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process now, without the interpreter's own end, which waits for other threads."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# A forked loading process must not write the signals that it gets into its trainer's pipe.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
