"""What the campaign of faults starts from: results of runs that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import anima_pipe


@pytest.fixture(scope="session")
def adapter(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of two steps. Not to be changed."""
    folder = tmp_path_factory.mktemp("adapter")
    anima_pipe("train", **cached, output_dir=folder).ok()
    return folder / "fox.safetensors"
