"""Signals: in the training loop, a request to stop after the current step; in workers, ignored."""

import atexit
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any

# Schedulers send SIGTERM or SIGUSR1 before they end a job; SIGINT is Ctrl-C; SIGHUP comes when a
# terminal is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# A launcher passes Ctrl-C on to processes that have already got it from the terminal.
SAME_INTERRUPT_S = 1.0
WORKER_GRACE_S = 120  # between SIGTERM and a worker's end


def set_handlers(
    handler: Callable[[int, FrameType | None], None],
) -> dict[signal.Signals, Any]:
    """Handle all of `SIGNALS`, but SIGHUP only where nohup or `trap '' HUP` does not ignore it.

    Returns:
        The handlers before.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
    return {number: signal.signal(number, handler) for number in numbers}


class Stopped(Exception):  # noqa: N818  # an ending, not an error
    """A signal has stopped the run; its state is saved, and it can go on from there."""

    def __init__(self, signal_name: str, step: int) -> None:
        super().__init__(signal_name, step)
        self.signal_name = signal_name
        self.step = step

    def __str__(self) -> str:
        return f"stopped by {self.signal_name} after step {self.step}, which is saved"


class StoppedEarly(Stopped):
    """A signal has stopped the run before its first step; there is nothing to save."""

    def __init__(self, signal_name: str) -> None:
        super().__init__(signal_name, 0)

    def __str__(self) -> str:
        return f"stopped by {self.signal_name} before there was anything to save"


class Doing(Enum):
    """What the main thread is doing, as far as it matters to whoever wants to stop it."""

    STARTING = "starting"  # or anything else
    WORKING = "working"  # ends by itself and checks for a request to stop
    SAVING = "saving"  # must not be cut short
    LOADING = "loading"  # waits for loading processes
    EXCHANGING = "exchanging"  # waits for the other processes


class StopRequest:
    """Whether a signal has asked this run to stop, and which (`signal_name`).

    Attributes:
        signal_name: of the first signal; None: there was none.
        doing: what the main thread is doing.
        since: when it began with that, on the monotonic clock.
        has_worked: whether it has begun with anything that can be saved.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.doing = Doing.STARTING
        self.since = time.monotonic()
        self.has_worked = False
        self._interrupted_at: float | None = None

    @contextmanager
    def while_doing(self, what: Doing) -> Iterator[None]:
        """Note what the main thread does in the body."""
        before = self.doing
        self._begin(what)
        try:
            yield
        finally:
            self._begin(before)

    def _begin(self, what: Doing) -> None:
        self.since = time.monotonic()
        self.doing = what
        self.has_worked = self.has_worked or what is Doing.WORKING

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle `SIGNALS` in the body; a second SIGINT interrupts at once.

        Outside the main thread, where Python does not handle signals, this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = set_handlers(self._receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif now - self._interrupted_at > SAME_INTERRUPT_S:
                raise KeyboardInterrupt
        self.signal_name = self.signal_name or signal.Signals(number).name


@functools.cache  # registers only once
def kill_workers_at_exit() -> None:
    """Kill data loading workers when the interpreter exits, instead of waiting for them.

    An uncaught exception keeps the loaders alive through its traceback. The interpreter then sends
    their workers SIGTERM, which `ignore_signals_in_worker` delays, and waits for them.
    """
    atexit.register(_kill_workers)


def _kill_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch raises an error when a worker dies
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def ignore_signals_in_worker(trainer: int, worker: int) -> None:  # noqa: ARG001
    """Keep a data loading worker alive when a signal is sent to its whole process group.

    The trainer acts on the signal, and needs its workers to finish the step. SIGTERM ends a worker
    after `WORKER_GRACE_S`, in case the trainer is gone.

    Args:
        trainer: process id of the training process. If that has already died, the worker ends:
            torch would take the process that adopted it for its trainer.
        worker: number of the worker, which torch passes.
    """
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S) and None)
    if os.getppid() != trainer:
        sys.exit(0)
