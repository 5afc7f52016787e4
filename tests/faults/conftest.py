"""What the campaign of faults starts from: results of runs that nothing disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import anima_pipe
from disturbed import (
    Stage,
    Undisturbed,
    all_stages,
    caching,
    exporting,
    training,
    undisturbed,
)


@pytest.fixture(scope="session")
def adapter(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapter")
    anima_pipe("train", **cached, output_dir=folder).ok()
    return folder / "fox.safetensors"


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The stage that a test is parametrized with, by its name."""
    match request.param:
        case "train":
            return training(request.getfixturevalue("cached"))
        case "export-comfy":
            return exporting(request.getfixturevalue("adapter"))
        case "all":
            config = tmp_path_factory.getbasetemp() / "train_args.toml"
            return all_stages(request.getfixturevalue("dataset"), config)
        case name:
            return caching(name, request.getfixturevalue("dataset"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Stage], Undisturbed]:
    """What a stage comes to if it is left alone; each is run once."""
    known: dict[str, Undisturbed] = {}

    def of(stage: Stage) -> Undisturbed:
        if stage.name not in known:
            folder = tmp_path_factory.mktemp("undisturbed") / stage.name
            known[stage.name] = undisturbed(stage, folder)
        return known[stage.name]

    return of
