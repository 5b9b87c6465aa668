"""Which silence of another process counts as its loss."""

import threading
import time

import pytest
from torch import distributed as dist

from banding_removal.processes import watchdog
from banding_removal.processes.signals import StopRequest
from banding_removal.processes.watchdog import Watchdog


def test_processes_that_were_all_stopped_for_a_while_do_not_take_each_other_for_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watchdog, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watchdog, "LOST_AFTER_S", 1.0)
    goes_on, lost = threading.Event(), threading.Event()
    goes_on.set()
    # Ctrl-Z stops the thread of this process, too.
    monkeypatch.setattr(Watchdog, "_share_stop_request", lambda _: goes_on.wait())
    monkeypatch.setattr(Watchdog, "_end_because_lost", lambda *_: lost.set())
    store = dist.HashStore()
    store.set("beat1", "process 1 on a working 1")
    with Watchdog(0, 2, lambda: store, StopRequest()) as dog:
        while 1 not in dog.others.heard:
            time.sleep(0.01)
        goes_on.clear()
        time.sleep(1.5)
        goes_on.set()
        found = [lost.wait(0.5)]  # the other one goes on a little later
        store.set("beat1", "process 1 on a working 2")
        found += [lost.wait(0.5), lost.wait(5)]
    assert found == [False, False, True]
