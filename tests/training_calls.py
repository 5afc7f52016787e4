"""What tests of trainings by call share: where a run writes, what it wrote, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from anima_pipe import runs
from anima_pipe.errors import ConfigError


def into(folder: Path, settings: runs.TrainSettings, **changes: Any) -> runs.TrainSettings:
    """Return settings that write into a folder, otherwise changed too."""
    changed = replace(settings, **changes)
    return replace(changed, save=replace(changed.save, folder=folder))


def trained(summary: runs.TrainSummary) -> bytes:
    """Return the file that a run ended with."""
    assert summary.output is not None
    return Path(summary.output).read_bytes()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_refused(make: Callable[[], object], *words: str, remedy: str = "") -> None:
    """Check that something is refused by an error with these words in its problem."""
    with pytest.raises(ConfigError) as raised:
        make()
    assert [word for word in words if word not in raised.value.problem] == []
    assert raised.value.remedy
    assert remedy in raised.value.remedy
    assert raised.value.remedy not in raised.value.problem
