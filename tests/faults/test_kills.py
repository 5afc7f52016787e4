"""Stages that are killed at random moments, again and again: the next run comes to the same.

ANIMA_PIPE_FAULT_TRIES says how many kills each gets.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from disturbed import Stage, Undisturbed, fetching, is_done, left_in_progress, undisturbed
from fake_hubs import running_hubs
from faults import TRIES, at_random

from anima_pipe import demo

RUNS_FOR_A_KILL = 10
"""A kill that is drawn for later than a run's end finds nobody at work."""

POWER_FAILS = 0.5
"""How often all processes die with one."""

pytestmark = pytest.mark.slow


def is_made_good(
    stage: Stage, whole: Undisturbed, folder: Path, *, of_several: bool = False
) -> None:
    """Kill a stage so often, each time in what the kills before have left; compare what comes.

    Args:
        stage: What is killed.
        whole: What it is to come to.
        folder: Parent of the folders in which it works; a new one after each run that ends well.
        of_several: Whether any of its processes may die, and alone or all of them at once.
    """
    deaths = list(
        whole.extents.items() if of_several else [(stage.name, whole.extents[stage.name])]
    )
    chance, kills, number = random.Random(f"{stage.name} {TRIES}"), 0, 0
    for _ in range(TRIES * RUNS_FOR_A_KILL):
        work = folder / str(number)
        work.mkdir(exist_ok=True)
        if kills == TRIES:
            break
        process, extent = chance.choice(deaths)
        group = of_several and chance.random() < POWER_FAILS
        ended = stage.run(work, at_random(chance, extent, process, work, group=group))
        if is_done(ended):
            assert stage.result(work) == whole.result
            number += 1
        else:
            assert ended.was_killed or (of_several and " failed" in ended.said), ended.said
            kills += 1
    assert kills == TRIES
    ended = stage.run(work)
    assert is_done(ended), ended.said
    assert ended.code or left_in_progress(work) == []
    assert stage.result(work) == whole.result


@pytest.mark.parametrize(
    "stage", ["cache-latents", "encode-text", "train", "export-comfy"], indirect=True
)
def test_a_stage_that_is_killed_at_random_comes_to_the_same_when_run_again(stage, whole, tmp_path):
    is_made_good(stage, whole(stage), tmp_path)


@pytest.mark.parametrize("stage", ["all"], indirect=True)
def test_all_stages_of_which_one_or_all_are_killed_at_random_end_with_the_same_bytes(
    stage, whole, tmp_path
):
    is_made_good(stage, whole(stage), tmp_path, of_several=True)


def test_fetching_that_is_killed_at_random_ends_with_the_same_files(tmp_path):
    with running_hubs(tmp_path / "clients") as hubs:
        hubs.hugging_face.add("google/t5-v1_1-base", "", demo.DEMO_T5_TOKENIZER)
        stage = fetching(hubs.environment)
        whole = undisturbed(stage, tmp_path / "whole")
        is_made_good(stage, whole, tmp_path)
