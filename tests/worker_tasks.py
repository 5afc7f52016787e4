"""What workers do in tests, and which processes they are. Workers import this module."""

import fcntl
import os
import re
import resource
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from anima_pipe.records import BucketChoice, LatentRequest
from anima_pipe.source.images import load_pixels


@dataclass(frozen=True)
class Picture:
    name: str
    seconds: float = 0.0


def tasks(count, seconds=0.0):
    """Tasks of two pictures each, `count` of them."""
    return [[Picture(f"{number}{side}.png", seconds) for side in "ab"] for number in range(count)]


def workers_of(pid=None):
    """Processes that decode for another one, or for this one."""
    children = psutil.Process(pid).children()
    return [
        child
        for child in children
        if "anima_pipe.source.worker_process" in " ".join(child.cmdline())
    ]


def a_megabyte(task):
    """Take as long as the pictures say; return more than a pipe holds."""
    time.sleep(sum(picture.seconds for picture in task))
    return task[0].name, bytes(2**20)


def names(task):
    return [picture.name for picture in task]


def wait_for_ever(task):
    time.sleep(1e6)


def fail(task):
    raise LookupError(task[0].name)


def print_much(task):
    print("this is no answer")
    os.write(1, b"nor this")
    sys.stdout.flush()
    return task[0].name


def die_within_the_answer(task):
    """Die as one that is killed while it sends a megabyte: a kilobyte of it is on the way."""
    (pipe,) = (fd for fd in range(3, 64) if _is_pipe_to_write_to(fd))
    os.write(pipe, (2**20).to_bytes(8, "little") + bytes(2**10))
    os.kill(os.getpid(), signal.SIGKILL)


def _is_pipe_to_write_to(fd):
    try:
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        return False
    return is_pipe and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY


def costs_of_a_picture(task):
    """Take and give back as much memory as a picture; return the pages that took, and niceness."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del [np.ones(20 * 2**20, np.uint8) for _ in range(2)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.nice(0)


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


def peak_of_decoding(task):
    """Bring a picture to a bucket; return how many bytes more than before the process had at most.

    Linux counts anew after a 5 is written there.
    """
    choice = BucketChoice(bucket=(1024, 832), resized=(1040, 832), crop=(8, 0))
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmRSS")
    load_pixels(LatentRequest(key="", image=task[0], choice=choice))
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1])


def main_module(task):
    """Return what runs as the main module of the worker, if it is a file."""
    return getattr(sys.modules["__main__"], "__file__", None)


def imported_torch(task):
    return "torch" in sys.modules


SOURCES = os.pathsep.join(str(path) for path in (Path(__file__).parents[1], Path(__file__).parent))
"""For PYTHONPATH of a program that uses these."""
