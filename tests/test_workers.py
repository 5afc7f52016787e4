"""Worker processes: whoever dies, of what and when, nobody waits for ever and nobody is left.

Deaths at random moments are tried a few times each; ANIMA_PIPE_FAULT_TRIES=50 tries more.
"""

import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import psutil
import pytest
from worker_tasks import (
    SOURCES,
    a_megabyte,
    costs_of_a_picture,
    die_within_the_answer,
    fail,
    imported_torch,
    main_module,
    names,
    print_much,
    tasks,
    wait_for_ever,
    workers_of,
)

from anima_pipe.source.workers import WorkerDiedError, in_processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

TRIES = int(os.environ.get("ANIMA_PIPE_FAULT_TRIES", "4"))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers):
    given = tasks(10)
    assert list(in_processes(names, given, num_workers)) == [names(task) for task in given]
    assert workers_of() == []


def test_there_are_no_more_processes_than_tasks():
    with closing(in_processes(names, tasks(2), num_workers=5)) as results:
        next(results)
        assert len(workers_of()) == 2


def test_what_a_task_raises_is_raised_with_its_place_in_the_worker():
    with pytest.raises(LookupError, match=r"0a\.png") as caught:
        list(in_processes(fail, tasks(3), num_workers=2))
    assert "worker_tasks.py" in caught.value.__notes__[0]
    assert workers_of() == []


def test_what_a_library_prints_is_no_answer():
    assert list(in_processes(print_much, tasks(3), num_workers=1)) == ["0a.png", "1a.png", "2a.png"]


def test_a_worker_runs_neither_the_main_module_nor_torch():
    assert list(in_processes(main_module, tasks(1), num_workers=1)) == [None]
    assert list(in_processes(imported_torch, tasks(1), num_workers=1)) == [False]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_workers_use_memory_again_and_let_the_encoder_go_first():
    _, (pages, niceness), *_ = in_processes(costs_of_a_picture, tasks(3), num_workers=1)
    assert pages < 1000
    assert niceness > os.nice(0)


def test_a_death_within_an_answer_is_noticed_and_names_the_pictures_that_were_in_flight():
    with pytest.raises(WorkerDiedError, match=r"SIGKILL[\s\S]*0a.png, 0b.png\n") as caught:
        list(in_processes(die_within_the_answer, tasks(4), num_workers=2))
    assert names(caught.value.in_flight) == ["0a.png", "0b.png"]
    assert workers_of() == []


def test_interrupts_and_terminations_pass_workers_by_from_their_first_moment():
    done = []
    for result in in_processes(a_megabyte, tasks(12, seconds=0.02), num_workers=2):
        done.append(result)
        for worker in workers_of():
            worker.send_signal(signal.SIGINT)
            worker.terminate()
    assert len(done) == 12

    results = in_processes(names, tasks(3), num_workers=1)
    answers = []
    reader = threading.Thread(target=lambda: answers.extend(results))
    reader.start()
    until(workers_of)  # it has not even begun to import
    workers_of()[0].terminate()
    reader.join()
    assert len(answers) == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_workers_that_do_not_answer_are_ended_at_once(stopped):
    results = in_processes(wait_or_answer, [[], *tasks(3)], num_workers=2)
    next(results)
    if stopped:
        for worker in workers_of():
            worker.suspend()
    results.close()
    assert workers_of() == []


def wait_or_answer(task):
    """Answer the empty task alone."""
    if task:
        wait_for_ever(task)


def test_a_worker_killed_at_a_random_moment_is_an_error_or_was_not_needed():
    chance = random.Random(0)
    deaths = sum(survives_a_death(chance) for _ in range(TRIES))
    assert deaths > 0


def survives_a_death(chance):
    """Kill a worker at a random moment; tell whether it was missed."""
    killer = threading.Thread(target=kill_one, args=(chance.uniform(0, 0.6), chance.random()))
    killer.start()
    given = tasks(40, seconds=0.01)
    missed = []
    try:
        done = [name for name, _ in in_processes(a_megabyte, given, num_workers=2)]
    except WorkerDiedError as death:
        missed = list(death.in_flight)
    killer.join()
    assert workers_of() == []
    assert missed in given if missed else done == [task[0].name for task in given]
    return bool(missed)


def kill_one(seconds, which):
    until(workers_of)
    time.sleep(seconds)
    workers = workers_of()
    if workers:
        workers[int(which * len(workers))].kill()


ENDLESS = """
import itertools, sys
from worker_tasks import a_megabyte, tasks
from anima_pipe.cli.ending import ending_of
from anima_pipe.source.workers import in_processes

def work():
    print("at work", flush=True)
    endless = (task for _ in itertools.count() for task in tasks(9, seconds=0.01))
    for _ in in_processes(a_megabyte, endless, num_workers=3):
        pass

sys.exit(ending_of(work))
"""
"""Decodes for ever, as a command does; without a guard, for no worker runs it."""


def ended(kill, seconds):
    """Start that, end it some seconds after it began its work; return its status and what it said.

    The pipe of its errors ends when the last process that has it is gone, workers too.
    """
    caller = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": SOURCES},
        text=True,
        start_new_session=True,
    )
    assert caller.stdout.readline() == "at work\n"
    time.sleep(seconds)
    kill(caller.pid, signal.SIGTERM if kill is os.killpg else signal.SIGKILL)
    said = caller.communicate(timeout=60)[1]
    return caller.returncode, said


def test_a_termination_of_the_whole_group_at_a_random_moment_ends_all_with_one_line():
    chance = random.Random(1)
    for _ in range(TRIES):
        assert ended(os.killpg, chance.uniform(0, 0.8)) == (143, "terminated\n")


def test_workers_leave_with_a_caller_that_is_killed_at_a_random_moment():
    chance = random.Random(2)
    for _ in range(TRIES):
        assert ended(os.kill, chance.uniform(0, 0.8)) == (-signal.SIGKILL, "")


def until(what):
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if what():
                return
        except psutil.NoSuchProcess:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.001)
