"""Asked to stop: signals become a request that the training loop meets after its next step."""

import atexit
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Schedulers announce the end of a job with one of these; SIGINT is Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# A launcher passes Ctrl-C on to processes that the terminal has already sent it to.
SAME_INTERRUPT_S = 1.0
WORKER_GRACE_S = 120


class Stopped(Exception):  # noqa: N818  # an ending, not an error
    """The run was asked to stop, has saved its state, and can go on from there."""

    def __init__(self, signal_name: str, step: int) -> None:
        super().__init__(signal_name, step)
        self.signal_name = signal_name
        self.step = step

    def __str__(self) -> str:
        return f"stopped by {self.signal_name} after step {self.step}, which is saved"


class StopRequest:
    """Whether somebody asked this run to stop."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._interrupted_at: float | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to SIGTERM, SIGUSR1 and SIGINT; a second SIGINT interrupts at once.

        Python delivers signals to the main thread alone: in any other, nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
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


@functools.cache  # registered once
def end_workers_at_exit() -> None:
    """Have the interpreter's end not wait for loading processes.

    After an exception that nobody caught, its traceback keeps the loaders. The interpreter sends
    their processes SIGTERM, which `leave_stopping_to` defers, and waits for them.
    """
    atexit.register(_end_workers)


def _end_workers() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes a worker's death for an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def leave_stopping_to(trainer: int, worker: int) -> None:  # noqa: ARG001
    """Let a loading process outlive signals to its whole group, which the trainer acts upon.

    SIGTERM still ends it, later: long enough for the trainer to finish its step, and not never,
    should that be gone.

    Args:
        trainer: process that it loads for. If that has died meanwhile, so does this one, which
            torch would take for the child of whoever inherited it.
        worker: its number.
    """
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_S) and None)
    if os.getppid() != trainer:
        sys.exit(0)
