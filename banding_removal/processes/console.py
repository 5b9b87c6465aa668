"""Output streams that may go away: a terminal that is closed, `| head`, a `tee` that Ctrl-C ends.

A run goes on without them, or saves and stops as it was asked to.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast


class _Stream:
    """A stream that leads nowhere from the first failure on, which is reported once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text."""
        if not self._failed:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._failed:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = True
        with suppress(OSError):
            # Otherwise, Python would fail when it flushes the stream at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        print(f"cannot write to the console: {error}; log.txt goes on", file=sys.stderr)  # noqa: T201


@contextmanager
def unfailing_console() -> Iterator[None]:
    """In the body, stdout and stderr raise nothing if they cannot be written.

    Characters that the terminal's encoding lacks are written as escapes.
    """
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, _Stream):
            setattr(sys, name, cast(TextIO, _Stream(stream)))
    try:
        yield
    finally:
        with suppress(ValueError):  # closed
            sys.stdout.flush()
            sys.stderr.flush()
        for name, stream in before.items():
            setattr(sys, name, stream)
