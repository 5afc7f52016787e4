"""Waiting for data is measured, and warned of where it takes too long."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from anima_pipe.dataset.batches import Window
from anima_pipe.trainer.prefetch import Prefetched


def windows(*seconds: float) -> Iterator[Window]:
    for number, wait in enumerate(seconds):
        time.sleep(wait)
        yield Window(epoch=0, index=number, ends_epoch=False, samples=1, micro_batches=())


def test_each_window_comes_with_the_time_that_it_took():
    (first, quick), (second, slow) = Prefetched(windows(0, 0.2))

    assert [first.index, second.index] == [0, 1]
    assert quick < 0.15 < slow


def test_a_batch_that_does_not_come_is_warned_of_while_it_is_waited_for(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING):
        list(Prefetched(windows(0, 0.25), patience_seconds=0.1))

    assert 1 <= sum("no batch for" in message for message in caplog.messages) <= 2
