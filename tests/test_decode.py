"""Decoding in worker processes: the same batches with any number of them, whatever fails."""

import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import decode_requests

from anima_pipe.errors import PipeError
from anima_pipe.source.decode import decode_in_workers, in_processes
from anima_pipe.source.images import load_pixels


def keys_of(batches):
    return [[request.key for request in batch.requests] for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_batches_hold_one_bucket_each_in_the_order_of_the_requests(tmp_path, num_workers):
    requests = decode_requests(tmp_path, 10)
    batches = list(decode_in_workers(load_pixels, requests, 3, num_workers))
    assert keys_of(batches) == [
        ["0-False", "2-False", "4-False"],
        ["6-False", "8-False"],
        ["1-False", "3-False", "5-False"],
        ["7-False", "9-False"],
    ]
    assert [batch.pixels.shape for batch in batches] == [
        (3, 32, 48, 3),
        (2, 32, 48, 3),
        (3, 48, 32, 3),
        (2, 48, 32, 3),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_row_is_the_picture_of_its_request(tmp_path, num_workers):
    requests = decode_requests(tmp_path, 6, orientations=(False, True))
    seen = 0
    for batch in decode_in_workers(load_pixels, requests, 5, num_workers):
        assert batch.pixels.dtype == torch.uint8
        for request, pixels in zip(batch.requests, batch.pixels, strict=True):
            assert (pixels.numpy() == load_pixels(request)).all()
            seen += 1
    assert seen == len(requests)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_picture_that_fails_is_listed_and_costs_its_batch_nothing(tmp_path, num_workers):
    requests = decode_requests(tmp_path, 8)
    broken = requests[1].image.path
    broken.write_bytes(broken.read_bytes()[:-100])
    requests[2].image.path.unlink()
    batches = list(decode_in_workers(load_pixels, requests, 4, num_workers))
    assert keys_of(batches) == [
        ["0-False", "6-False"],
        ["1-False", "3-False", "5-False", "7-False"],
    ]
    failures = [failure for batch in batches for failure in batch.failures]
    assert [Path(failure.name).name for failure in failures] == ["002.png", "004.png"]
    assert "has changed since it was scanned" in failures[0].reason
    assert "No such file" in failures[1].reason


def test_a_batch_of_nothing_but_failures_has_no_rows(tmp_path):
    requests = decode_requests(tmp_path, 1)
    requests[0].image.path.unlink()
    (batch,) = decode_in_workers(load_pixels, requests, 4, 0)
    assert (len(batch.requests), len(batch.pixels), len(batch.failures)) == (0, 0, 1)


def test_nothing_to_decode_starts_no_process():
    assert list(decode_in_workers(load_pixels, [], 4, 2)) == []
    assert multiprocessing.active_children() == []


def test_leaving_early_ends_the_workers(tmp_path):
    batches = decode_in_workers(load_pixels, decode_requests(tmp_path, 40), 1, 2)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_is_one_clear_error(tmp_path):
    batches = decode_in_workers(load_pixels, decode_requests(tmp_path, 40), 1, 2)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(PipeError, match=r"died[\s\S]*--num_workers"):
        list(batches)


ENDLESS_CALLER = """
if __name__ == "__main__":  # what stands outside is run by every worker
    import multiprocessing, sys, time
    from pathlib import Path
    from picture_files import decode_requests
    from anima_pipe.source.decode import decode_in_workers, in_processes
    from anima_pipe.source.images import load_pixels

    batches = decode_in_workers(load_pixels, decode_requests(Path(sys.argv[1]), 40), 1, 2)
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_workers_do_not_outlive_a_caller_that_is_killed(tmp_path):
    script = tmp_path / "caller.py"
    script.write_text(ENDLESS_CALLER)
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    caller = subprocess.Popen(
        [sys.executable, script, tmp_path], stdout=subprocess.PIPE, env=environment, text=True
    )
    workers = [int(pid) for pid in caller.stdout.readline().split()]
    caller.kill()
    caller.communicate()  # returns once nobody holds the pipe: the workers have it too
    assert workers
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)


def costs_of_a_picture(_: int) -> tuple[int, int]:
    """Take and give back as much memory as a picture; return the pages that took, and the niceness.

    Runs in a worker.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del [np.ones(20 * 2**20, np.uint8) for _ in range(2)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, os.nice(0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_workers_use_memory_again_and_let_the_encoder_go_first():
    _, (pages, niceness), *_ = in_processes(costs_of_a_picture, range(3), num_workers=1)
    assert pages < 1000
    assert niceness > os.nice(0)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] != "Z"
