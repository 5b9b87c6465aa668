"""A signal ends a process that waits in vain, and none that will stop by itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from banding_removal.processes import stuck
from banding_removal.processes.signals import Doing, StopRequest
from banding_removal.processes.stuck import Others, waits_in_vain
from banding_removal.processes.watchdog import HEARTBEAT_S

REPOSITORY = Path(__file__).resolve().parents[2]

# A process that waits where no handler of Python runs; `others` does what is said.
WAITING = """
import sys, threading, time
import torch.distributed as dist
from datetime import timedelta
from banding_removal.processes.signals import Doing, StopRequest
from banding_removal.processes import stuck
from banding_removal.processes.stuck import Others, ending_waits

stuck.GRACE_S, stuck.SEEN_S = 0.6, 0.3  # seconds of every test
stop, others = StopRequest(), Others()
doing, of_other = map(Doing, sys.argv[1:3])

def beat():
    while True:
        others.heard[1] = (of_other, time.monotonic())
        time.sleep(0.2)

threading.Thread(target=beat, daemon=True).start()
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
with stop.on_signals(), ending_waits(stop, others), stop.while_doing(Doing.WORKING):
    with stop.while_doing(doing):
        time.sleep(0.5)
        print("waiting", flush=True)
        try:
            store.wait(["what nobody sets"], timedelta(seconds=float(sys.argv[3])))
        except dist.DistError:
            print("through", stop.signal_name)
"""


def waiting(doing: str, of_other: str, seconds: float) -> tuple[int, str, str, float]:
    """Exit status and output of such a process that gets SIGTERM, and how long it took to end."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, doing, of_other, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err, time.monotonic() - begun


def test_sigterm_ends_a_collective_that_nobody_completes_within_five_seconds() -> None:
    code, out, err, seconds = waiting("exchanging", "exchanging", 60)
    assert code == 75
    assert out == ""
    said = "stopped by SIGTERM while waiting in vain for another process"
    assert said in err and "give the same command again" in err
    assert seconds < 3
    assert stuck.GRACE_S + stuck.SEEN_S + 2 * stuck.POLL_S + stuck.TELL_S < 5


def test_the_loss_of_a_process_at_the_moment_of_the_signal_is_noticed_within_five_seconds() -> None:
    noticed = HEARTBEAT_S + stuck.SILENT_S
    assert noticed + stuck.SEEN_S + stuck.POLL_S + stuck.TELL_S <= 5
    assert stuck.SILENT_S >= 3 * HEARTBEAT_S  # one or two may be late


def test_sigterm_ends_a_wait_for_loading_processes_whatever_the_others_do() -> None:
    code, _, err, seconds = waiting("loading", "working", 60)
    assert code == 75
    assert "while waiting in vain for loading processes" in err
    assert seconds < 3


def test_a_collective_that_waits_for_a_process_at_work_is_not_cut_short() -> None:
    code, out, err, _ = waiting("exchanging", "saving", 2)
    assert (code, out) == (0, "through SIGTERM\n"), err


def asked(doing: Doing, seconds: float) -> StopRequest:
    stop = StopRequest()
    stop.doing, stop.since = doing, time.monotonic() - seconds
    return stop


def test_what_waits_in_vain_and_what_does_not() -> None:
    alone, others, long = Others(), Others(), 1000.0
    for doing in (Doing.WORKING, Doing.SAVING):
        assert not waits_in_vain(asked(doing, long), alone)
    starting = asked(Doing.STARTING, long)  # reads thousands of files, perhaps
    assert waits_in_vain(starting, alone) == "the start"
    starting.has_worked = True
    assert not waits_in_vain(starting, alone)
    assert waits_in_vain(asked(Doing.LOADING, long), alone)
    assert not waits_in_vain(asked(Doing.LOADING, 0.1), alone)  # a batch may come yet
    assert waits_in_vain(asked(Doing.EXCHANGING, long), alone)
    for doing, vain in (
        *((Doing.WORKING, False), (Doing.SAVING, False)),
        *((Doing.STARTING, True), (Doing.LOADING, True), (Doing.EXCHANGING, True)),
    ):
        others.heard = {1: (doing, time.monotonic()), 2: (Doing.EXCHANGING, time.monotonic())}
        assert bool(waits_in_vain(asked(Doing.EXCHANGING, long), others)) == vain
        assert not waits_in_vain(asked(Doing.WORKING, long), others)


def test_a_process_that_is_silent_ends_all_but_the_writing_of_a_checkpoint() -> None:
    others = Others()
    others.heard = {1: (Doing.WORKING, time.monotonic() - stuck.SILENT_S - 1)}
    others.names = {1: "process 7 on a"}
    awaited = "rank 1 (process 7 on a), which no longer responds"
    assert waits_in_vain(asked(Doing.WORKING, 1000), others) == awaited
    assert waits_in_vain(asked(Doing.EXCHANGING, 0), others)
    assert not waits_in_vain(asked(Doing.SAVING, 1000), others)


def test_what_the_main_thread_does_is_nested() -> None:
    stop, seen = StopRequest(), []
    with stop.while_doing(Doing.WORKING):
        seen.append(stop.doing)
        with stop.while_doing(Doing.SAVING):
            seen.append(stop.doing)
        seen.append(stop.doing)
    assert seen == [Doing.WORKING, Doing.SAVING, Doing.WORKING]
    assert (stop.doing, stop.has_worked) == (Doing.STARTING, True)
