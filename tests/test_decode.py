"""Decoding in worker processes: the same batches with any number of them, whatever fails."""

from pathlib import Path

import pytest
import torch
from picture_files import decode_requests
from worker_tasks import workers_of

from anima_pipe.source.decode import decode_in_workers
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
    assert workers_of() == []


def test_leaving_early_ends_the_workers(tmp_path):
    batches = decode_in_workers(load_pixels, decode_requests(tmp_path, 40), 1, 2)
    next(batches)
    assert workers_of()
    batches.close()
    assert workers_of() == []


def test_workers_that_are_killed_cost_no_picture(tmp_path):
    requests = decode_requests(tmp_path, 40)
    batches = decode_in_workers(load_pixels, requests, 1, 2)
    done = [next(batches)]
    for worker in workers_of():
        worker.kill()
    done += batches
    assert [request for batch in done for request in batch.requests] == requests
    assert not any(batch.failures or batch.deadly for batch in done)
