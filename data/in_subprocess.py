"""A function called in a child process, which alone dies or hangs with what it is given.

HDF5 loops for ever over some damaged files, crashes on others, and takes a gigabyte for a few bytes
of a third kind: no `except` helps.
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
TIME_LIMIT_S = 60.0  # seconds of computing for one file, which takes some hundredths
MEMORY_LIMIT = 1 << 30  # bytes for one file, which takes some ten million


class SubprocessLostError(Exception):
    """A child process died or hung; the message says how."""


def map_in_subprocess(
    function: Callable[[T], R], items: Sequence[T], seconds: float | None = None
) -> Iterator[R | SubprocessLostError]:
    """The function's result for each item, in order, or how the child process was lost over it.

    One child does all, and only after a loss another one those that are left.

    Args:
        function: of one item; what it returns must be picklable, and it must not raise.
        items: any.
        seconds: of computing, after which it counts as hanging (waiting for a disk does not count);
            None: `TIME_LIMIT_S`.
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
        return f"reading it did not come to an end in {seconds:.0f} s of computing"
    how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    return f"the process that read it {how}"


def _call_each(
    function: Callable[[T], R], items: Sequence[T], seconds: float, pipe: Connection
) -> None:
    # The kernel's doing: within a library that loops, no handler would run.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _bound_memory()
    for item in items:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        pipe.send(function(item))


def _bound_memory() -> None:
    """Let this process fail to get more than `MEMORY_LIMIT` beyond what it has; on Linux."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        has = int(pages.read_text().split()[5]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard == resource.RLIM_INFINITY or hard > has + MEMORY_LIMIT:
            resource.setrlimit(resource.RLIMIT_DATA, (has + MEMORY_LIMIT, hard))
