"""Puts a fault into a process from outside: Python imports this by itself as the process starts.

FAULT in the environment says which, as JSON; `faults.Fault` has the fields. Where nothing is said,
nothing is done. Faults come at what the process does to files within one folder, counted, and not
at moments of the clock: on a busy machine they come no later in the work.
"""

import errno
import json
import os
import resource
import signal
import sys
import time

TOUCHING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""What Python tells of what is about to be done to files."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def name_of_process():
    """Return the command that a process runs, or worker for one that decodes for it."""
    words = sys.orig_argv
    if any("worker_process" in word for word in words):
        return "worker"
    return words[words.index("anima_pipe.cli") + 1] if "anima_pipe.cli" in words else ""


def take(token):
    """Be the one process that takes a token."""
    try:
        os.close(os.open(token, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Watch:
    """Sees each touch of a file in a folder, before it is done, and acts."""

    def __init__(self, fault):
        self.fault = fault
        self.touches = 0
        self.began = 0.0

    def __call__(self, event, arguments):
        if event not in TOUCHING or not self.concerns(arguments[0]):
            return
        if self.touches == 0:
            self.began = time.process_time()
            if seconds := self.fault["cpu_seconds"]:
                # A signal without a handler ends the process within any instruction, as SIGKILL.
                signal.setitimer(signal.ITIMER_PROF, seconds)
        self.touches += 1
        if self.touches > self.fault["touches"] >= 0:
            self.act(event, arguments)

    def concerns(self, path):
        path = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        return path.startswith(self.fault["within"]) and self.fault["part"] in path

    def act(self, event, arguments):
        if self.fault["note"]:
            os.close(os.open(f"{self.fault['note']}/struck", os.O_CREAT))
        if self.fault["kind"] == "die":
            end()
        is_read = event == "open" and not arguments[2] & WRITING
        number = {"unreadable": errno.EIO, "read-only": errno.EROFS}[self.fault["kind"]]
        if is_read == (self.fault["kind"] == "unreadable"):
            raise OSError(number, os.strerror(number))

    def note(self):
        spent = time.process_time() - self.began
        # By another name first: the process may be killed here as anywhere.
        path = f"{self.fault['note']}/{os.getpid()}"
        with open(path, "w", encoding="ascii") as file:  # noqa: PTH123
            json.dump({"touches": self.touches, "cpu_seconds": spent}, file)
        os.rename(path, f"{self.fault['note']}/{name_of_process()}.json")  # noqa: PTH104


def end():
    os.kill(0 if FAULT["group"] else os.getpid(), signal.SIGKILL)


def limit_files(size, *, deadly):
    """Let no file grow beyond a size; the write that would ends the process, or fails in part."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def shift_clock(seconds, after):
    """Have the clock jump once it was asked so often."""
    asked = 0

    def shifted(clock, unit):
        def read():
            nonlocal asked
            asked += 1
            return clock() + (seconds * unit if asked > after else 0)

        return read

    now = time.time = shifted(time.time, 1)
    time.time_ns = shifted(time.time_ns, 10**9)
    for name in ("gmtime", "localtime"):
        by_seconds = getattr(time, name)
        setattr(time, name, lambda at=None, told=by_seconds: told(now() if at is None else at))


def arm(fault):
    if fault["bytes"] >= 0:
        limit_files(fault["bytes"], deadly=fault["kind"] == "die")
    elif fault["kind"] == "clock":
        shift_clock(fault["seconds"], fault["touches"])
    else:
        watch = Watch(fault)
        if fault["note"]:
            import atexit

            atexit.register(watch.note)
        sys.addaudithook(watch)


FAULT = json.loads(os.environ.get("FAULT", "null"))
concerned = FAULT and FAULT["of"] in (name_of_process(), "any")
if concerned and (not FAULT["once"] or take(FAULT["once"])):
    arm(FAULT)
