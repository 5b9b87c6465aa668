"""One process's failure ends all of them, with its cause; none waits for one that is gone.

Collectives alone do not do that: a process that waits for a dead one learns of it late (NCCL) or
as "connection closed" (Gloo), and never why. So each process has a thread that beats in the shared
store, listens to the others' beats, and reads what a failing process wrote there.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from torch import distributed as dist

from banding_removal.processes.exit_status import FAILED, RankError, exit_code, in_words
from banding_removal.processes.signals import Stopped, StopRequest

log = logging.getLogger(__name__)

BEAT_S = 1.0
LOST_AFTER_S = 15.0  # without a beat
# For a process that was told of a failure elsewhere: to end in its own way, with its log closed.
OWN_WAY_S = 5.0
FAILURE, STOP = "failure", "stop"


class Watch:
    """Beats for this process and watches the others while in its `with` block.

    Args:
        rank: of this process.
        size: number of processes.
        connect: makes a connection to the shared store; the thread has its own.
        stop: told when another process was asked to stop.
    """

    def __init__(
        self, rank: int, size: int, connect: Callable[[], dist.Store], stop: StopRequest
    ) -> None:
        self.rank = rank
        self.size = size
        self.stop = stop
        self.store = connect()
        self._thread_store = connect()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
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
            if self.rank == 0:
                _say(in_words(error))
        elif not isinstance(error, RankError):
            words = f"rank {self.rank}: {in_words(error)}"
            if self._claim(self.store, exit_code(error), words) is None:
                _say(words)
        # Not through the interpreter's end, where NCCL would wait for processes that are gone.
        _exit(exit_code(error))

    def cause(self, error: Exception) -> Exception:
        """What lies behind an error: for one of a collective, most often another process's end.

        Returns:
            A RankError if another process reported its failure; else `error` itself. If another
            process is gone without a word, the watch says so and ends this one meanwhile.
        """
        if not _of_a_collective(error):
            return error
        give_up = time.monotonic() + LOST_AFTER_S + 3 * BEAT_S
        while time.monotonic() < give_up and not self.store.check([FAILURE]):
            time.sleep(BEAT_S / 10)
        if not self.store.check([FAILURE]):
            return error
        code, words = _parse(self.store.get(FAILURE))
        return RankError(f"ended by another process: {words}", code)

    def _run(self) -> None:
        count, heard = 0, {rank: ("", time.monotonic()) for rank in range(self.size)}
        me = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            while not self._ended.wait(BEAT_S if count else 0):
                count += 1
                self._thread_store.set(f"beat{self.rank}", f"{me} {count}")
                self._end_if_another_failed()
                self._pass_on_stop()
                for rank, (last, since) in heard.items():
                    key = f"beat{rank}"
                    beat = last
                    if self._thread_store.check([key]):
                        beat = self._thread_store.get(key).decode()
                    if beat != last:
                        heard[rank] = (beat, time.monotonic())
                    elif last and time.monotonic() - since > LOST_AFTER_S:
                        who = last.rpartition(" ")[0]
                        self._end_of(rank, who)
        except dist.DistError as error:
            # At a common end the process that serves the store may be the first to go.
            if not self._ended.wait(OWN_WAY_S):
                _end(FAILED, f"lost the connection to the other processes: {error}", aloud=True)

    def _end_if_another_failed(self) -> None:
        if not self._thread_store.check([FAILURE]):
            return
        code, words = _parse(self._thread_store.get(FAILURE))
        if words.startswith(f"rank {self.rank}: "):
            return
        if not self._ended.wait(OWN_WAY_S):
            _end(code, f"ended by another process: {words}", aloud=False)

    def _end_of(self, rank: int, who: str) -> None:
        words = f"rank {rank} ({who}) has not been heard of for {LOST_AFTER_S:.0f} s: killed, "
        words += "stopped, or its machine is down"
        earlier = self._claim(self._thread_store, FAILED, words)
        code, words = earlier or (FAILED, words)
        _end(code, words, aloud=earlier is None)

    def _claim(self, store: dist.Store, code: int, words: str) -> tuple[int, str] | None:
        """Record a failure as the first one; if it was not, the first one."""
        mine = f"{code} {words}"
        try:
            stored = store.compare_set(FAILURE, "", mine).decode()
        except dist.DistError:
            return None  # the process that kept the store is gone, too
        return None if stored == mine else _parse(stored.encode())

    def _pass_on_stop(self) -> None:
        store = self._thread_store
        if self.stop.signal_name is not None:
            store.set(STOP, self.stop.signal_name)
        elif store.check([STOP]):
            self.stop.signal_name = store.get(STOP).decode()


def _parse(stored: bytes) -> tuple[int, str]:
    code, _, words = stored.decode().partition(" ")
    return int(code), words


def _of_a_collective(error: BaseException) -> bool:
    """Whether it was raised by torch.distributed; Gloo's errors are plain RuntimeErrors."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or "NCCL" in str(error))


def _say(words: str | None) -> None:
    print(f"\n{words}", file=sys.stderr, flush=True)  # noqa: T201


def _end(code: int, words: str, *, aloud: bool) -> None:
    """End this process from the watching thread, whatever the main thread waits for."""
    log.error("the run ended: %s", words)
    if aloud:
        _say(words)
    _exit(code)


def _exit(code: int) -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
