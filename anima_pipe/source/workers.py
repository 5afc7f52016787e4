"""Processes that decode for this one, each over two pipes of its own.

The pools of the standard library share one pipe and its locks among all workers: one that dies
while it holds a lock, or with half a message written, holds up everybody for ever. Here a death
closes the pipes of that worker and of no other, and whoever reads from them sees their end.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import IO, Any, Final, Generic, NoReturn, Protocol, TypeVar

from anima_pipe.errors import PipeError

TASKS_AHEAD: Final = 2
"""Tasks per worker that are done, or being done, before the caller takes them."""

LEAVING_SECONDS: Final = 5.0
"""How long a killed worker is waited for; the system may not end one in the middle of a read."""

NAMED_AT_MOST: Final = 8
"""Pictures that the message about a death names."""

WORKER_NICENESS: Final = 19
"""By how much workers step back behind the process that they decode for."""

KEPT_BYTES: Final = 128 * 2**20
"""Of freed memory that a worker keeps for its next picture: enough for one of 10 megapixels."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""By their numbers in glibc's malloc.h; setting one ends the automatic choice of both."""

_LARGEST_HEAP_BLOCK: Final = 32 * 2**20
"""The most that glibc takes for its M_MMAP_THRESHOLD."""

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from anima_pipe.source.workers import serve; serve()"
)
"""What a worker runs: not the caller's main module, which may import anything."""

_LENGTH_BYTES: Final = 8
"""Of the number in front of each message."""


class Named(Protocol):
    """A picture, or what is wanted of it."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...


_Task = TypeVar("_Task", bound=Sequence[Named])
_Result = TypeVar("_Result")


class WorkerDiedError(PipeError):
    """A worker ended before it had answered.

    Args:
        in_flight: The task it was given; no other was lost with it.
        status: How it ended: minus the number of the signal that ended it, else its exit status.
    """

    def __init__(self, in_flight: Sequence[Named], status: int) -> None:
        names = list(dict.fromkeys(each.name for each in in_flight))
        more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
        super().__init__(
            f"a process that decodes pictures died ({_ending(status)}), most likely for want of "
            f"memory, while it had {', '.join(names[:NAMED_AT_MOST])}{more}",
            "run again with fewer --num_workers (0 decodes without processes), or free memory; "
            "if it dies of the same pictures again, leave them out",
        )
        self.in_flight = in_flight


def _ending(status: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"exit status {status}"


def in_processes(
    do: Callable[[_Task], _Result], tasks: Iterable[_Task], num_workers: int
) -> Generator[_Result]:
    """Do tasks in worker processes, a bounded number of them ahead, and yield the results in order.

    Results come back through pipes instead of shared memory, which containers have little of, and
    workers start without torch, which a DataLoader's do not. Close the generator to end the workers
    at once; they end with this process in any case.

    Args:
        do: A function of a module, or a partial of one; what it raises is raised here.
        tasks: Taken as they are needed.
        num_workers: Processes, of which no more are started than there are tasks; 0: do each task
            here when its result is asked for.

    Raises:
        WorkerDiedError: One of them died; it says at which task.
        PipeError: One cannot be started.
    """
    if num_workers == 0:
        yield from map(do, tasks)
        return
    workers = _Workers(do, num_workers)
    ahead: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            ahead.append(workers.submit(task))
            if len(ahead) > num_workers * TASKS_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        workers.close()


class _Workers(Generic[_Task, _Result]):
    """Workers that take tasks from one queue, each fed by a thread of its own.

    The threads are daemons: whatever becomes of a worker, they hold up no exit.
    """

    def __init__(self, do: Callable[[_Task], _Result], at_most: int) -> None:
        self._do = do
        self._at_most = at_most
        self._tasks: SimpleQueue[tuple[_Task, Future[_Result]] | None] = SimpleQueue()
        self._started: list[tuple[_Worker[_Task, _Result], threading.Thread]] = []

    def submit(self, task: _Task) -> Future[_Result]:
        """Have a task done by the next worker that is free."""
        if len(self._started) < self._at_most:
            worker = _Worker(self._do)
            thread = threading.Thread(target=self._feed, args=(worker,), daemon=True)
            self._started.append((worker, thread))
            thread.start()
        future: Future[_Result] = Future()
        self._tasks.put((task, future))
        return future

    def close(self) -> None:
        """Kill all workers; they have nothing to put away, and their tasks are wanted no more."""
        for worker, _ in self._started:
            worker.kill()
            self._tasks.put(None)
        deadline = time.monotonic() + LEAVING_SECONDS
        for _, thread in self._started:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _feed(self, worker: _Worker[_Task, _Result]) -> None:
        while self._do_next(worker):
            pass
        worker.clear_away()

    def _do_next(self, worker: _Worker[_Task, _Result]) -> bool:
        entry = self._tasks.get()
        if entry is None:
            return False
        task, future = entry
        try:
            future.set_result(worker.do(task))
        except Exception as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)
        return True


class _Worker(Generic[_Task, _Result]):
    """One process, and the ends of its pipes; used by one thread, but for `kill`."""

    def __init__(self, do: Callable[[_Task], _Result]) -> None:
        self._do = do
        try:
            with _signals_held():
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                    [sys.executable, "-P", "-c", _PROGRAM, json.dumps(sys.path)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
        except OSError as error:
            raise PipeError(
                f"cannot start a process that decodes pictures: {error.strerror or error}",
                "run again with fewer --num_workers (0 decodes without processes)",
            ) from error
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def do(self, task: _Task) -> _Result:
        """Have a task done, and raise what doing it raised.

        Raises:
            WorkerDiedError: There is no whole answer.
        """
        try:
            _send(self._requests, (self._do, task))
            answer = _receive(self._answers)
        except (OSError, EOFError) as error:
            self.kill()  # of a dead one this changes nothing
            raise WorkerDiedError(task, self._process.wait()) from error
        succeeded, outcome = pickle.loads(answer)  # noqa: S301 - our own process wrote it
        if not succeeded:
            raise outcome
        return outcome

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()

    def clear_away(self) -> None:
        """Wait until the process has ended, and close the pipes."""
        self._process.wait()
        with suppress(OSError):  # what was not sent cannot be sent any more
            self._requests.close()
        self._answers.close()


@contextmanager
def _signals_held() -> Generator[None]:
    """Start processes in here that Ctrl-C and SIGTERM do not reach before they ignore them.

    Both come to a whole process group, and a scheduler's even to all of a job: it is for the
    parent to end the work. What a thread holds back, a process that it starts holds back too.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: IO[bytes], message: object) -> None:
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    pipe.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """Return the next message.

    Raises:
        EOFError: The pipe ended before it, or within it.
    """
    return _read(pipe, int.from_bytes(_read(pipe, _LENGTH_BYTES), "little"))


def _read(pipe: IO[bytes], count: int) -> bytes:
    content = pipe.read(count)
    if len(content) < count:
        raise EOFError
    return content


def serve() -> NoReturn:
    """Be a worker: answer the requests at standard input until it ends, then leave at once.

    It ends where the parent closes it or dies, of whatever; it is read by a thread, so that a
    worker leaves in the middle of a picture too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = _standard_pipes()
    _step_back()
    _keep_freed_memory()
    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_take_in, args=(requests, messages), daemon=True).start()
    while True:
        do, task = pickle.loads(messages.get())  # noqa: S301 - our parent wrote it
        try:
            _send(answers, _outcome(do, task))
        except OSError:
            os._exit(0)  # nobody is left to be told


def _standard_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output for messages, away from everything else that may use them.

    What a library prints goes to standard error, and a process that it starts inherits neither: it
    could keep the pipes open beyond this one's death.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if sys.stderr else nothing, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _take_in(requests: IO[bytes], messages: SimpleQueue[bytes]) -> None:
    while True:
        try:
            messages.put(_receive(requests))
        except (OSError, EOFError):
            os._exit(0)


def _outcome(do: Callable[[Any], object], task: object) -> tuple[bool, object]:
    """Return whether doing a task succeeded, and what came of it: a result, or what was raised."""
    try:
        return True, do(task)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return False, error


def _step_back() -> None:
    """Let the parent go first.

    Where there are too few cores for all, an encoder's threads would wait for the one of them that
    a decoder holds up. There are always pictures ahead, so decoders have time.
    """
    if hasattr(os, "nice"):
        os.nice(WORKER_NICENESS)


def _keep_freed_memory() -> None:
    """Have the C library keep what one picture took for the next one, where it is glibc.

    It gives large blocks back to the system at once. Getting 60 MB of them anew for every picture,
    cleared, page by page, took as long as decoding it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none, and habits of their own
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
