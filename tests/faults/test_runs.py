"""Faults injected into real runs: the quick part of `make faults`."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import disk, killed, spoilt
from tests.faults.bench import Bench, Faults, Try
from tests.faults.toy import EVERY, Toy

NO_DISK = disk.SmallDisk.why_not()
needs_a_disk = pytest.mark.skipif(bool(NO_DISK), reason=NO_DISK or "there is one")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs without a fault, which all tests compare with."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def bench_of(shared: Path, request: pytest.FixtureRequest) -> Callable[..., Bench]:
    def make(stage: int, nproc: int = 1) -> Bench:
        folder = shared / f"{request.node.name}-{stage}-{nproc}"
        settings = Faults(folder=folder, kills=3, epochs=2, slices=6)
        return Bench(toy=Toy(folder=folder, stage=stage, nproc=nproc), settings=settings)

    return make


def survived(tries: Iterator[Try], count: int, lost: int = EVERY) -> None:
    """Check how many faults were tried; one that is not survived raises."""
    found = [*tries]
    assert len(found) == count
    assert all(0 <= one.lost <= lost for one in found)


def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(
    bench_of: Callable[..., Bench],
) -> None:
    survived(killed.killed(bench_of(2)), 3)


def test_two_processes_killed_at_random_moments_end_as_if_they_had_not_been(
    bench_of: Callable[..., Bench],
) -> None:
    bench = bench_of(1, 2)
    survived(killed.killed(replace(bench, settings=replace(bench.settings, kills=2))), 2)


@pytest.mark.parametrize("moment", ["a checkpoint", "the first checkpoint", "the index", "a grid"])
def test_a_run_killed_while_it_writes_goes_on(bench_of: Callable[..., Bench], moment: str) -> None:
    survived(killed.killed_while_writing(bench_of(1), [moment]), 1)


def test_a_signal_saves_and_stops(bench_of: Callable[..., Bench]) -> None:
    survived(killed.signalled(bench_of(2), [signal.SIGUSR1, signal.SIGINT]), 2, lost=0)


def test_a_second_ctrl_c_ends_in_the_middle_of_a_write(bench_of: Callable[..., Bench]) -> None:
    survived(killed.interrupted_twice(bench_of(1)), 1)


@needs_a_disk
@pytest.mark.parametrize("what", ["a checkpoint", "metrics", "log and curves"])
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(
    bench_of: Callable[..., Bench], what: str
) -> None:
    survived(disk.disk_full(bench_of(1), [what]), 1, lost=12)


@needs_a_disk
def test_logs_that_become_read_only_end_a_run(bench_of: Callable[..., Bench]) -> None:
    survived(disk.read_only(bench_of(1)), 2)


@pytest.mark.parametrize("what", ["all logs removed", "the run's folder moved"])
def test_a_run_whose_folder_is_removed_makes_it_again_and_goes_on(
    bench_of: Callable[..., Bench], what: str
) -> None:
    survived(disk.removed(bench_of(1), [what]), 1)


def test_damaged_checkpoints_give_way_until_none_is_left(bench_of: Callable[..., Bench]) -> None:
    survived(disk.damaged(bench_of(1), ["two flipped", "all truncated"]), 2, lost=3 * EVERY)


def test_a_killed_data_loading_worker_ends_the_run_and_is_named(
    bench_of: Callable[..., Bench],
) -> None:
    survived(killed.worker_killed(bench_of(1)), 1)


def test_a_nan_loss_in_one_of_two_processes_rolls_both_back(
    bench_of: Callable[..., Bench],
) -> None:
    survived(
        spoilt.fails_once(bench_of(1, 2), ["loss NaN in one of the processes"]), 1, lost=2 * EVERY
    )


def test_a_run_that_keeps_failing_ends_with_the_cause(bench_of: Callable[..., Bench]) -> None:
    survived(spoilt.fails_for_good(bench_of(2)), 1)
