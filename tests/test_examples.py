"""The programs under examples/ do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from commands import ROOT

from anima_pipe.adapters import load_adapter
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.model import TextConditionedTransformer, load_transformer
from anima_pipe.objective.flow_loss import LossConfig, ObjectiveConfig, draw
from anima_pipe.objective.passes import pass_losses, placed

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def test_a_loop_of_ones_own_trains_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["own_loop.py", str(tmp_path)])
    dataset = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))["dataset"]

    model = load_transformer(DEMO_TRANSFORMER)
    module = TextConditionedTransformer(model)
    batch = next(iter(dataset.epoch(9).loader()))
    draws = draw(batch.latents.shape, ObjectiveConfig(), seed=1)
    inputs = placed(batch, draws, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        before = pass_losses(module, inputs, LossConfig()).mean()
        load_adapter(tmp_path / "own_loop.safetensors", model)
        after = pass_losses(module, inputs, LossConfig()).mean()
    assert after < 0.9 * before
