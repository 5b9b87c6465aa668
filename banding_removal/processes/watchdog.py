"""If one process fails or is lost, all of them end and say why.

Collective operations alone do not do that. After the death of one process, Gloo ends the others
with "connection closed by peer" and exit code 1, whatever the cause was and wherever. If a process
is stopped or its machine is down, the others wait until the collective's time-out
(`timeout_minutes`, half an hour by default). torch's elastic agent notices processes that are dead,
but not those that are stopped, and there is no agent where Slurm starts the processes.

So each process runs a thread that writes a heartbeat to the shared store once a second, checks the
heartbeats of the others, and reads the failure that another process has reported there.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from torch import distributed as dist

from banding_removal.processes.exit_status import FAILED, RankError, describe_error, exit_code
from banding_removal.processes.signals import Doing, Stopped, StoppedEarly, StopRequest
from banding_removal.processes.stuck import Others, end_process, leave

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
LOST_AFTER_S = 15.0  # without a heartbeat
# For the main thread to end by itself, with its log closed, after a failure in another process.
GRACE_S = 5.0
FAILURE, STOP = "failure", "stop"  # keys in the store


class Watchdog:
    """Sends this process's heartbeats and checks the others' while in its `with` block.

    A failure of the body, or of another process, ends this process with an exit code that tells
    which (`processes.exit_status`).

    Args:
        rank: of this process.
        size: number of processes.
        connect: makes a new connection to the shared store; the thread has its own.
        stop: set when another process was asked to stop; what this process is doing.
        others: what the other processes are doing is noted there.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        connect: Callable[[], dist.Store],
        stop: StopRequest,
        others: Others | None = None,
    ) -> None:
        self.rank = rank
        self.size = size
        self.stop = stop
        self.others = others or Others()
        self.store = connect()
        self._thread_store = connect()
        self.others.tell = lambda code, message: self._report(self._thread_store, code, message)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, Stopped):
            self._ended.set()  # all processes come here together
            self._thread.join()
        if error is None:
            return
        if isinstance(error, Stopped):
            early = isinstance(error, StoppedEarly)
            if early:
                self._hand_on(error.signal_name)
            if self.rank == 0 or early:
                _print(describe_error(error))
        elif not isinstance(error, RankError):
            message = f"rank {self.rank}: {describe_error(error)}"
            if self._report(self.store, exit_code(error), message) is None:
                _print(message)
        # Not a normal exit of the interpreter: there, NCCL would wait for processes that are gone.
        leave(exit_code(error))

    def _hand_on(self, signal_name: str) -> None:
        """Pass a stop request on to processes that wait for this one, before the store is gone."""
        with contextlib.suppress(dist.DistError):  # it is gone already
            self.store.set(STOP, signal_name)
            if self.rank == 0:
                time.sleep(1.5 * HEARTBEAT_S)

    def cause(self, error: Exception) -> Exception:
        """The cause of an error: if a collective failed, most often the end of another process.

        Returns:
            A RankError if another process has reported a failure, else `error` itself. If another
            process has disappeared without a report, the thread notices and ends this process
            meanwhile.
        """
        if not _is_from_collective(error):
            return error
        give_up = time.monotonic() + LOST_AFTER_S + 3 * HEARTBEAT_S
        try:
            while not self.store.check([FAILURE]):
                if time.monotonic() > give_up:
                    return error
                time.sleep(HEARTBEAT_S / 10)
            code, message = _parse(self.store.get(FAILURE))
        except dist.DistError as lost:
            _print(_connection_lost(lost))
            return RankError(_connection_lost(lost), FAILED)
        return RankError(f"ended by another process: {message}", code)

    def _run(self) -> None:
        """The thread: heartbeats, failures, stop requests, once a second."""
        beats = 0
        last_heard = {rank: ("", time.monotonic()) for rank in range(self.size)}
        before = time.monotonic()
        me = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            while not self._ended.wait(HEARTBEAT_S if beats else 0):
                beats += 1
                self._thread_store.set(f"beat{self.rank}", f"{me} {self.stop.doing.value} {beats}")
                self._end_if_another_failed()
                self._share_stop_request()
                now = time.monotonic()
                if now - before > LOST_AFTER_S / 2:
                    # This process itself was stopped (Ctrl-Z, a suspended job), perhaps with the
                    # others, which go on a little later.
                    last_heard = {rank: (beat, now) for rank, (beat, _) in last_heard.items()}
                before = now
                self._check_heartbeats(last_heard)
        except dist.DistError as error:
            # At a normal end, rank 0, which serves the store, may be the first to go.
            if not self._ended.wait(GRACE_S):
                end_process(FAILED, _connection_lost(error))

    def _end_if_another_failed(self) -> None:
        if not self._thread_store.check([FAILURE]):
            return
        code, message = _parse(self._thread_store.get(FAILURE))
        if message.startswith(f"rank {self.rank}: "):
            return
        # Who was asked to stop has no time left, unless it is writing.
        asked = self.stop.signal_name is not None and self.stop.doing is not Doing.SAVING
        if not self._ended.wait(HEARTBEAT_S / 2 if asked else GRACE_S):
            end_process(code, f"ended by another process: {message}", on_console=False)

    def _share_stop_request(self) -> None:
        store = self._thread_store
        if self.stop.signal_name is not None:
            store.set(STOP, self.stop.signal_name)
        elif store.check([STOP]):
            self.stop.signal_name = store.get(STOP).decode()

    def _check_heartbeats(self, last_heard: dict[int, tuple[str, float]]) -> None:
        """End this process if another one has been silent for too long."""
        for rank, (last, since) in last_heard.items():
            key = f"beat{rank}"
            beat = last
            if self._thread_store.check([key]):
                beat = self._thread_store.get(key).decode()
            if beat != last:
                last_heard[rank] = (beat, time.monotonic())
                if rank != self.rank:
                    self.others.names[rank] = beat.rsplit(" ", 2)[0]
                    self.others.heard[rank] = (Doing(beat.split(" ")[-2]), time.monotonic())
            elif last and time.monotonic() - since > LOST_AFTER_S:
                process = last.rsplit(" ", 2)[0]
                self._end_because_lost(
                    f"rank {rank} ({process}) has not responded for {LOST_AFTER_S:.0f} s: "
                    "killed, stopped, or its machine is down"
                )

    def _end_because_lost(self, message: str) -> None:
        earlier = self._report(self._thread_store, FAILED, message)
        code, message = earlier or (FAILED, message)
        end_process(code, message, on_console=earlier is None)

    def _report(self, store: dist.Store, code: int, message: str) -> tuple[int, str] | None:
        """Report a failure to all processes, unless there is an earlier one, which is returned."""
        mine = f"{code} {message}"
        try:
            stored = store.compare_set(FAILURE, "", mine)
        except dist.DistError:
            return None  # the process that serves the store is gone, too
        return None if stored.decode() == mine else _parse(stored)


def _parse(stored: bytes) -> tuple[int, str]:
    code, _, message = stored.decode().partition(" ")
    return int(code), message


def _connection_lost(error: dist.DistError) -> str:
    reason = (str(error).splitlines() or [""])[0]
    return f"lost the connection to rank 0 or its launcher, which may have been killed: {reason}"


def _is_from_collective(error: BaseException) -> bool:
    """Whether torch.distributed raised it; Gloo's errors are plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))


def _print(message: str | None) -> None:
    print(f"\n{message}", file=sys.stderr, flush=True)  # noqa: T201
