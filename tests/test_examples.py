"""The programs under examples/ do what they say."""

from __future__ import annotations

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from commands import ROOT
from safetensors.torch import load_file

from anima_pipe.adapters import load_adapter
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.model import TextConditionedTransformer, load_transformer
from anima_pipe.objective.flow_loss import LossConfig, ObjectiveConfig, draw
from anima_pipe.objective.passes import pass_losses, placed
from anima_pipe.runs import Moment, Training, train
from anima_pipe.trainer import accelerate_afresh

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def example(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run an example in a folder; return its variables."""
    monkeypatch.setattr("sys.argv", [name, str(folder)])
    return runpy.run_path(str(ROOT / "examples" / name))


def tensors(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def test_a_loop_of_ones_own_trains_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = example(tmp_path, "own_loop.py", monkeypatch)["dataset"]

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


def test_a_run_with_a_hook_of_ones_own_ends_where_the_hook_says_its_state_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    example(tmp_path, "train_with_a_hook.py", monkeypatch)

    (log,) = (tmp_path / "logs").rglob("metrics.jsonl")
    losses = [json.loads(line)["loss/current"] for line in log.read_text().splitlines()]
    low = next(step for step, loss in enumerate(losses, 1) if loss < 1.1)
    # It is asked to end behind the step that the loop goes on with.
    assert len(losses) == low + 1
    assert f"steps={low + 1}," in capsys.readouterr().out
    assert (tmp_path / f"fox-step{low + 1:08d}-state" / "adapter.safetensors").exists()


def test_two_trainings_share_a_model_that_is_loaded_once_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = example(tmp_path, "two_trainings.py", monkeypatch)

    assert not any("delta" in name for name, _module in ran["base"].named_modules())
    fresh = load_transformer(DEMO_TRANSFORMER).state_dict()
    assert all(torch.equal(ran["base"].state_dict()[name], fresh[name]) for name in fresh)
    alone = replace(ran["run"], save=replace(ran["run"].save, name="alone"))
    train(alone)
    assert tensors(tmp_path / "alone.safetensors") == tensors(tmp_path / "lokr.safetensors")


def test_the_model_itself_is_trained_but_for_a_part_and_written_for_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran = example(tmp_path, "full_fine_tuning.py", monkeypatch)

    assert ran["summary"].final_loss < ran["summary"].first_loss
    before = load_transformer(DEMO_TRANSFORMER).state_dict()
    after = load_transformer(tmp_path / "model.safetensors").state_dict()
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    assert same == {name for name in before if name.startswith("llm_adapter.")}
    assert (tmp_path / "diffusers" / "text_conditioner" / "config.json").is_file()


def test_a_training_leaves_torch_and_accelerate_as_the_caller_had_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with accelerate_afresh():
        own = Accelerator(cpu=True, mixed_precision="bf16")
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")

        example(tmp_path, "two_trainings.py", monkeypatch)

        assert torch.equal(torch.rand(3), expected)
        assert own.mixed_precision == "bf16"
        assert os.environ["ACCELERATE_USE_FSDP"] == "true"
        assert own.device == torch.device("cpu")


def test_hooks_are_made_of_what_is_trained_where_a_function_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Moving:
        """Notes how large the adapter's factors are."""

        def __init__(self, training: Training) -> None:
            self.training, self.sizes = training, list[float]()

        def due(self, moment: Moment) -> bool:
            return moment.is_last or not moment.after_step

        def at(self, _moment: Moment) -> None:
            self.sizes.append(sum(p.norm().item() for p in self.training.trained.parameters()))

    ran = example(tmp_path, "two_trainings.py", monkeypatch)
    made: list[Moving] = []

    def hooks(training: Training) -> list[Moving]:
        made.append(Moving(training))
        return made

    train(ran["run"], hooks)

    before, after = made[0].sizes
    assert after > before
    assert made[0].training.batches.plan.samples
