"""Output that cannot be written any more ends no run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

from banding_removal.command_line import user_errors
from banding_removal.errors import ConfigError
from banding_removal.processes.console import unfailing_console


@contextmanager
def closed_pipe() -> Iterator[None]:
    """Both streams lead into a pipe that nobody reads, as of `2>&1 | tee` after Ctrl-C."""
    before = sys.stdout, sys.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(os.dup(writer), "w") as sys.stdout, os.fdopen(writer, "w") as sys.stderr:
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def test_a_pipe_that_nobody_reads_ends_nothing() -> None:
    with closed_pipe():
        with unfailing_console():
            for number in tqdm(range(3), mininterval=0):
                print(number, flush=True)
                print(number, file=sys.stderr)
        print("nor does it fail afterwards", flush=True)


def test_the_exit_status_does_not_depend_on_the_console() -> None:
    with pytest.raises(SystemExit) as ended, closed_pipe(), user_errors():
        raise ConfigError("said to nobody")
    assert ended.value.code == 2


def test_characters_that_the_console_lacks_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "console.txt"
    with path.open("w", encoding="latin-1") as console:
        monkeypatch.setattr(sys, "stdout", console)
        with unfailing_console():
            print("Universit\u00e4t \u8111")
    assert path.read_bytes() == b"Universit\xe4t \\u8111\n"
