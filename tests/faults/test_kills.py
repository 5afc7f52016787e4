"""Stages that are killed at random moments, again and again: the next run comes to the same.

ANIMA_PIPE_FAULT_TRIES says how many kills each gets.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from disturbed import (
    Stage,
    all_stages,
    caching,
    exporting,
    fetching,
    left_in_progress,
    training,
)
from fake_hubs import Hubs, running_hubs
from faults import TRIES, at_random

from anima_pipe import demo

RUNS_FOR_A_KILL = 10
"""A kill that is drawn for later than a run's end finds nobody at work."""

POWER_FAILS = 0.5
"""How often all processes die with one."""


def is_made_good(stage: Stage, folder: Path, *, of_several: bool = False) -> None:
    """Kill a stage so often, each time in what the kills before have left; compare what comes.

    Args:
        stage: What is killed.
        folder: Parent of the folders in which it works; a new one after each run that ends well.
        of_several: Whether any of its processes may die, and alone or all of them at once.
    """
    whole = folder / "whole"
    extents = stage.measured(whole)
    expected = stage.result(whole)
    deaths = list(extents.items()) if of_several else [(stage.name, extents[stage.name])]
    chance, kills, number = random.Random(f"{stage.name} {TRIES}"), 0, 0
    for _ in range(TRIES * RUNS_FOR_A_KILL):
        work = folder / str(number)
        work.mkdir(exist_ok=True)
        if kills == TRIES:
            break
        process, extent = chance.choice(deaths)
        group = of_several and chance.random() < POWER_FAILS
        ended = stage.run(work, at_random(chance, extent, process, work, group=group))
        if ended.code == 0:
            assert stage.result(work) == expected
            number += 1
        else:
            assert ended.was_killed or (of_several and " failed" in ended.said), ended.said
            kills += 1
    assert kills == TRIES
    assert_the_next_run_ends_well(stage, work, expected)


def assert_the_next_run_ends_well(stage: Stage, folder: Path, expected: object) -> None:
    ended = stage.run(folder)
    if ended.code == 2 and "is at step" in ended.said:
        assert "the run's last" in ended.said  # the kill came when all was done
    else:
        ended.ok()
        assert left_in_progress(folder) == []
    assert stage.result(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cache-latents", "encode-text"])
def test_caching_that_is_killed_at_random_fills_the_same_cache(name, dataset, tmp_path):
    is_made_good(caching(name, dataset), tmp_path)


@pytest.mark.slow
def test_training_that_is_killed_at_random_ends_with_the_same_bytes(cached, tmp_path):
    is_made_good(training(cached), tmp_path)


@pytest.mark.slow
def test_an_export_that_is_killed_at_random_writes_the_same_file(adapter, tmp_path):
    is_made_good(exporting(adapter), tmp_path)


@pytest.mark.slow
def test_fetching_that_is_killed_at_random_ends_with_the_same_files(tmp_path):
    with running_hubs(tmp_path / "clients") as hubs:
        publish_tokenizer(hubs)
        is_made_good(fetching(hubs.environment), tmp_path / "work")


def publish_tokenizer(hubs: Hubs) -> None:
    hubs.hugging_face.add("google/t5-v1_1-base", "", demo.DEMO_T5_TOKENIZER)


@pytest.mark.slow
def test_all_stages_of_which_one_or_all_are_killed_at_random_end_with_the_same_bytes(
    dataset, tmp_path
):
    stage = all_stages(dataset, tmp_path / "train_args.toml")
    is_made_good(stage, tmp_path, of_several=True)
