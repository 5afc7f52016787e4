"""Puts faults into what a program does to its files, from outside: at the events it is audited by.

An audit hook stays for as long as the process lives, so that these are for processes of their own.
"""

import ctypes
import errno
import os
import signal
import sys

TOUCHING = ("os.mkdir", "open", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym")
"""Events before something is done to a file; the last: before a system call by another way."""


def die_at(number):
    """Kill this process just before the n-th time that it touches a file, counted from 0."""
    left = number

    def watch(event, _arguments):
        nonlocal left
        if event in TOUCHING:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(watch)


def die_before_renaming_to(name):
    """Kill this process just before a file or folder gets a name."""

    def watch(event, arguments):
        if event == "os.rename" and os.path.basename(arguments[1]) == name:  # noqa: PTH119
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def fail_at(event, numbers):
    """Have the disk refuse events of a kind by their numbers, counted from 0."""
    count = -1

    def watch(seen, _arguments):
        nonlocal count
        if seen == event:
            count += 1
            if count in numbers:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    sys.addaudithook(watch)


def exchange_nothing():
    """Be on a system that can exchange no names in one step."""
    ctypes.CDLL(None)

    def watch(event, arguments):
        if event == "ctypes.dlsym" and arguments[1] in ("renameat2", "renamex_np"):
            raise AttributeError(arguments[1])

    sys.addaudithook(watch)
