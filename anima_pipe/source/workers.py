"""Processes that decode for this one, each over two pipes of its own.

The pools of the standard library share one pipe and its locks among all workers: one that dies
while it holds a lock, or with half a message written, holds up everybody for ever. Here a death
closes the pipes of that worker and of no other, and whoever reads from them sees their end.
"""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from queue import SimpleQueue
from typing import Final, Generic, Protocol, TypeVar, cast

from anima_pipe.errors import PipeError
from anima_pipe.source.budget import Budget, decoding_bytes
from anima_pipe.source.worker_process import receive, send

TASKS_AHEAD: Final = 2
"""Tasks per worker that are done, or being done, before the caller takes them."""

LEAVING_SECONDS: Final = 5.0
"""How long a killed worker is waited for; the system may not end one in the middle of a read."""

NAMED_AT_MOST: Final = 8
"""Pictures that the message about a death names."""

DEADLY_AT_MOST: Final = 16
"""Pictures that may kill their workers; more of them have another cause, such as too little memory
for any."""

HERE_AT_MOST: Final = 2**28
"""Bytes that a task may take in this process: as many as a picture of 22 million pixels."""

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from anima_pipe.source.worker_process import serve; serve()"
)
"""What a worker runs: not the caller's main module, which may import anything."""


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
            "run again with fewer --num_workers (0: large pictures alone), or free memory; "
            "if it dies of the same pictures again, leave them out",
        )
        self.in_flight = in_flight


def _ending(status: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"exit status {status}"


@dataclass(frozen=True)
class Care(Generic[_Task, _Result]):
    """How pictures are handled that take much memory, or kill the worker that decodes them."""

    cost: Callable[[_Task], int]
    """The most bytes that a task may take at a time."""
    joined: Callable[[Sequence[_Result | WorkerDiedError]], _Result]
    """Makes a task's result of those of its pictures, each of which was tried alone."""


def in_processes(
    do: Callable[[_Task], _Result],
    tasks: Iterable[_Task],
    num_workers: int,
    care: Care[_Task, _Result] | None = None,
) -> Generator[_Result]:
    """Do tasks in worker processes, a bounded number of them ahead, and yield the results in order.

    Results come back through pipes instead of shared memory, which containers have little of, and
    workers start without torch, which a DataLoader's do not. Close the generator to end the workers
    at once; they end with this process in any case.

    Args:
        do: A function of a module, or a partial of one; what it raises is raised here.
        tasks: Taken as they are needed.
        num_workers: Processes, of which no more are started than there are tasks; 0: do each task
            here when its result is asked for. With `care`, one that takes more than `HERE_AT_MOST`
            is done in a process even so, if one can be started: it may end the one that does it.
        care: The tasks done at once take no more than `decoding_bytes`. Where a worker dies, the
            pictures that it had are tried again one by one, while no other is decoded: one that
            kills a worker then too is its own death's cause. None: a death ends it all.

    Raises:
        WorkerDiedError: One of them died; it says at which task. With `care`, too many did.
        PipeError: One cannot be started.
    """
    if num_workers == 0:
        yield from _done_here(do, tasks, care)
        return
    workers = _Workers(do, num_workers, care)
    ahead: deque[tuple[_Task, Future[_Result]]] = deque()
    try:
        for task in tasks:
            ahead.append((task, workers.submit(task)))
            if len(ahead) > num_workers * TASKS_AHEAD:
                yield workers.result(*ahead.popleft())
        while ahead:
            yield workers.result(*ahead.popleft())
    finally:
        workers.close()


def _done_here(
    do: Callable[[_Task], _Result], tasks: Iterable[_Task], care: Care[_Task, _Result] | None
) -> Generator[_Result]:
    """Do tasks in this process, and one after the other in another what may end it."""
    if care is None:
        yield from map(do, tasks)
        return
    workers = _Workers(do, 1, care)
    try:
        for task in tasks:
            apart = _submitted(workers, task) if care.cost(task) > HERE_AT_MOST else None
            yield do(task) if apart is None else workers.result(task, apart)
    finally:
        workers.close()


def _submitted(workers: _Workers[_Task, _Result], task: _Task) -> Future[_Result] | None:
    """Have a task done by a process; None: none can be started, which may be why none is wanted."""
    try:
        return workers.submit(task)
    except PipeError:
        return None


class _Workers(Generic[_Task, _Result]):
    """Workers that take tasks from one queue, each fed by a thread of its own.

    The threads are daemons: whatever becomes of a worker, they hold up no exit.
    """

    def __init__(
        self, do: Callable[[_Task], _Result], at_most: int, care: Care[_Task, _Result] | None
    ) -> None:
        self._do = do
        self._at_most = at_most
        self._care = care
        self._budget = Budget(decoding_bytes() if care else 1)
        self._deadly = 0
        self._tasks: SimpleQueue[tuple[_Task, Future[_Result]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._started: list[_Worker[_Task, _Result]] = []
        self._closed = False
        self._starting = threading.Lock()

    def submit(self, task: _Task) -> Future[_Result]:
        """Have a task done by the next worker that is free."""
        if len(self._threads) < self._at_most:
            thread = threading.Thread(target=self._feed, args=(self._start(),), daemon=True)
            self._threads.append(thread)
            thread.start()
        future: Future[_Result] = Future()
        self._tasks.put((task, future))
        return future

    def result(self, task: _Task, future: Future[_Result]) -> _Result:
        """Return what became of a task, of its pictures one by one if its worker died.

        Raises:
            WorkerDiedError: It died, and nothing is to be tried again.
        """
        try:
            return future.result()
        except WorkerDiedError:
            if self._care is None:
                raise
            by_picture = [list(of_one) for _, of_one in groupby(task, key=lambda each: each.name)]
            return self._care.joined([self._alone(of_one) for of_one in by_picture])

    def close(self) -> None:
        """Kill all workers; they have nothing to put away, and their tasks are wanted no more."""
        with self._starting:
            self._closed = True
        for worker in self._started:
            worker.kill()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + LEAVING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _alone(self, of_one: Sequence[Named]) -> _Result | WorkerDiedError:
        """Have what is wanted of one picture done while nothing else is.

        Raises:
            WorkerDiedError: It died, as it did with many others: they are not to blame.
        """
        with self._budget.taking(None):
            worker = self._start()
            try:
                return worker.do(cast("_Task", of_one))
            except WorkerDiedError as death:
                self._deadly += 1
                if self._deadly > DEADLY_AT_MOST:
                    raise
                return death
            finally:
                worker.kill()
                worker.clear_away()

    def _start(self) -> _Worker[_Task, _Result]:
        with self._starting:
            if self._closed:
                raise RuntimeError("no worker is started any more")
            worker = _Worker(self._do)
            self._started.append(worker)
        return worker

    def _feed(self, worker: _Worker[_Task, _Result]) -> None:
        while (entry := self._tasks.get()) is not None:
            task, future = entry
            try:
                worker = self._start() if worker.is_dead else worker
                with self._budget.taking(self._care.cost(task) if self._care else 0):
                    future.set_result(worker.do(task))
            except Exception as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
        worker.clear_away()


class _Worker(Generic[_Task, _Result]):
    """One process, and the ends of its pipes; used by one thread, but for `kill`."""

    def __init__(self, do: Callable[[_Task], _Result]) -> None:
        self._do = do
        self.is_dead = False
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
            send(self._requests, (self._do, task))
            answer = receive(self._answers)
        except (OSError, EOFError) as error:
            self.is_dead = True
            self.kill()  # of a dead one this changes nothing
            self.clear_away()
            raise WorkerDiedError(task, self._process.returncode) from error
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
