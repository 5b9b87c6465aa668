"""Starts scripts quickly: everything is imported once, and each script runs in a fork.

It reads one JSON object per line and answers with one:

{"start": [script, word, ...], "environment": {...}, "output": path, "folder": path} -> {"pid": pid}
{"poll": pid} -> {"code": exit status, negative for a signal; null while it runs}
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import banding_removal.command_line
import tests.faults.driver


def serve() -> list[str] | None:
    """Answer until the input ends; returns in a fork, with the script and words to run."""
    ended: dict[int, int] = {}
    alone = len(list(Path("/proc/self/task").iterdir()))
    if alone > 1:
        raise RuntimeError(f"{alone} threads: a fork would have one of them")
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "start" in asked:
            pid = os.fork()
            if pid == 0:
                return _become(asked)
            _answer({"pid": pid})
            continue
        pid = asked["poll"]
        if pid not in ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        _answer({"code": ended.get(pid)})
    return None


def _become(asked: dict[str, Any]) -> list[str]:
    os.setsid()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(number, target)
    words: list[str] = asked["start"]
    return words


def _answer(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    assert banding_removal.command_line and tests.faults.driver  # imported for the forks
    started = serve()
    if started is not None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123  # until the end
        if os.environ.get(tests.faults.driver.FAULT):
            tests.faults.driver.install()
        sys.argv = started
        sys.orig_argv = [sys.executable, *started]
        runpy.run_path(started[0], run_name="__main__")
