"""A function called in a child process, so that a crash or hang stays there.

On damaged files HDF5 may loop for ever, crash, or allocate gigabytes; no `except` helps against
that.
"""

import multiprocessing
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
TIME_LIMIT_S = 60.0  # CPU seconds for one file; a good one takes some hundredths
MEMORY_LIMIT = 1 << 30  # bytes for one file; a good one takes some ten million


class SubprocessLostError(Exception):
    """A child process died or hung; the message says how."""


def map_in_subprocess(
    function: Callable[[T], R], items: Sequence[T], seconds: float | None = None
) -> Iterator[R | SubprocessLostError]:
    """The function's result for each item, in order, or a SubprocessLostError in its place.

    One child works through the items; if it is lost, another one takes the rest.

    Args:
        function: called with one item; its result must be picklable, and it must not raise.
        items: passed to the child by forking; they need not be picklable.
        seconds: limit of CPU time for an item (waiting for a disk does not count); None:
            `TIME_LIMIT_S`.
    """
    seconds = TIME_LIMIT_S if seconds is None else seconds
    context = multiprocessing.get_context("fork")
    done = 0
    while done < len(items):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_call_each, args=(function, items[done:], seconds, theirs))
        child.start()
        theirs.close()
        try:
            lost = False
            while done < len(items) and not lost:
                try:
                    result: Any = ours.recv()
                except EOFError:
                    child.join()
                    result, lost = (
                        SubprocessLostError(_how_it_ended(child.exitcode or 0, seconds)),
                        True,
                    )
                done += 1
                yield result
        finally:
            child.kill()
            child.join()
            ours.close()


def _how_it_ended(code: int, seconds: float) -> str:
    if code == -signal.SIGPROF:
        return f"reading it took more than {seconds:.0f} s of CPU time"
    how = f"exited with {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
    return f"the process that read it {how}"


def _call_each(
    function: Callable[[T], R], items: Sequence[T], seconds: float, pipe: Connection
) -> None:
    # The default action kills the process; a Python handler would not run inside a C loop.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _bound_memory()
    for item in items:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        pipe.send(function(item))


def _bound_memory() -> None:
    """Limit this process to `MEMORY_LIMIT` bytes more than it has now (Linux only)."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        has = int(pages.read_text().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard == resource.RLIM_INFINITY or hard > has + MEMORY_LIMIT:
            resource.setrlimit(resource.RLIMIT_DATA, (has + MEMORY_LIMIT, hard))
