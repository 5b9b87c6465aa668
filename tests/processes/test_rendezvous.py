"""Processes of one job find each other, and nobody else's."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from torch import distributed as dist

from banding_removal.errors import ConfigError
from banding_removal.processes import rendezvous
from banding_removal.processes.gpus import check_gpus, gpu_of
from banding_removal.processes.place import Place
from banding_removal.processes.rendezvous import identity_of, meet, wait_for_all
from banding_removal.processes.signals import StoppedEarly, StopRequest
from tests.support.distributed_jobs import Plain

Connect = Callable[[], dist.Store]


@pytest.fixture
def place() -> Place:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = int(listener.getsockname()[1])
    return Place(rank=0, size=2, local_rank=0, local_size=1, address="localhost", port=port)


@pytest.fixture
def served(place: Place) -> Iterator[Connect]:
    """The store of job a, which has begun."""
    yield meet(place, "job a", StopRequest())


def test_the_ranks_of_a_job_meet(place: Place, served: Connect) -> None:
    other = meet(replace(place, rank=1), "job a", StopRequest())
    wait_for_all(other(), 2, StopRequest())
    served().set("said", "by rank 0")
    assert other().get("said") == b"by rank 0"


def test_a_second_job_on_the_port_ends_and_leaves_the_first_alone(
    place: Place, served: Connect
) -> None:
    with pytest.raises(ConfigError, match=f"port {place.port} of this machine is in use"):
        meet(place, "job b", StopRequest())
    with pytest.raises(ConfigError, match=f"localhost:{place.port} belongs to another job"):
        meet(replace(place, rank=1), "job b", StopRequest())
    assert not served().check(["joined1"])
    meet(replace(place, rank=1), "job a", StopRequest())  # a is not disturbed
    wait_for_all(served(), 2, StopRequest())


def test_the_same_rank_does_not_join_twice(place: Place, served: Connect) -> None:
    rank_1 = replace(place, rank=1)
    meet(rank_1, "job a", StopRequest())
    with pytest.raises(ConfigError, match="there is a rank 1 at"):
        meet(rank_1, "job a", StopRequest())
    # A restart by torchrun uses the same store.
    meet(place, "job a", StopRequest(), attempt="1", served=True)
    meet(rank_1, "job a", StopRequest(), attempt="1", served=True)


def test_a_port_of_another_program_is_not_waited_for_for_long(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE_S", 0.3)
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.3)
    with socket.socket() as listener:  # never answers
        listener.bind(("0.0.0.0", place.port))
        listener.listen()
        with pytest.raises(ConfigError, match="is in use"):
            meet(place, "job a", StopRequest())
        with pytest.raises(ConfigError, match="rank 0 does not answer at"):
            meet(replace(place, rank=1), "job a", StopRequest())


def test_another_programs_store_is_not_joined(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.3)
    store = dist.TCPStore("localhost", place.port, is_master=True, wait_for_workers=False)
    with pytest.raises(ConfigError, match="belongs to another job or program"):
        meet(replace(place, rank=1), "job a", StopRequest())
    assert store.num_keys() <= 1


def test_ranks_that_do_not_come_are_named(
    place: Place,
    served: Connect,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rendezvous, "PATIENCE_S", 0.5)
    monkeypatch.setattr(rendezvous, "NEWS_S", 0.1)
    with pytest.raises(ConfigError, match=r"of 4 processes, rank \[1, 2, 3\] did not start"):
        wait_for_all(served(), 4, StopRequest())
    assert capsys.readouterr().err.count("waiting for rank [1, 2, 3]") == 1


def test_a_stop_request_ends_every_wait(place: Place, served: Connect) -> None:
    stop = StopRequest()
    timer = threading.Timer(0.3, lambda: setattr(stop, "signal_name", "SIGTERM"))
    begun = time.monotonic()
    timer.start()
    with pytest.raises(StoppedEarly, match="stopped by SIGTERM before there was anything to save"):
        wait_for_all(served(), 2, stop)
    with pytest.raises(StoppedEarly):  # rank 0 has not started
        meet(replace(place, rank=1, port=place.port + 1), "job a", stop)
    assert time.monotonic() - begun < 2


def test_jobs_differ_in_name_size_or_settings_but_not_in_what_belongs_to_a_machine(
    place: Place,
) -> None:
    settings = Plain()
    identity = identity_of(place, settings)
    same = identity_of(replace(place, rank=1, address="10.0.0.1"), replace(settings, nproc=4))
    assert same == identity
    others = {
        identity_of(replace(place, job="7.0"), settings),
        identity_of(replace(place, size=3), settings),
        identity_of(place, replace(settings, timeout_minutes=1.0)),
    }
    assert len({identity, *others}) == 4


def test_a_task_that_sees_one_gpu_uses_it_and_no_gpu_is_used_twice(place: Place) -> None:
    last = replace(place, local_rank=3, local_size=4)
    assert gpu_of(last, 4) == 3
    assert gpu_of(last, 1) == 0
    with pytest.raises(ConfigError, match="only 2 visible here"):
        gpu_of(last, 2)
    check_gpus(["a 1", "a 2", "b 1"])
    with pytest.raises(ConfigError, match="ranks 1 and 2 have the same GPU on a"):
        check_gpus(["a 1", "a 2", "a 2"])
