"""Adapters merged into the base before training: together, and rounded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import pretend_training, small_model
from golden_model import golden_weights, relative_error
from safetensors.torch import save_file
from torch import Tensor

from anima_pipe.adapters import Adapter, create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.adapter import merge_together
from anima_pipe.runs.base import load_base
from anima_pipe.runs.settings.trained import ModelSettings

CPU = torch.device("cpu")


def settings(base: Path, files: list[Path], precision: str) -> ModelSettings:
    return ModelSettings(
        transformer=base,
        mixed_precision=precision,
        base_weights=tuple((path, 0.5) for path in files),
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    weights = {name: tensor.bfloat16() for name, tensor in golden_weights("a").items()}
    save_file(weights, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def small_adapters(folder: Path, count: int) -> list[Path]:
    """Write adapters of which each changes the weights by a few rounding steps of bf16."""
    files: list[Path] = []
    for number in range(count):
        adapter = create_adapter("lora", small_model(), 2, train_norm=False, seed=number)
        pretend_training(adapter, seed=number, size=0.02)
        files.append(save_adapter(adapter, folder / f"{number}.safetensors"))
    return files


def weights_of(base: Path, files: list[Path], precision: str) -> dict[str, Tensor]:
    model = load_base(settings(base, files, precision), CPU)
    return {name: tensor.float() for name, tensor in model.state_dict().items()}


def test_six_base_weights_cost_one_rounding(base, tmp_path):
    files = small_adapters(tmp_path, 6)
    before = weights_of(base, [], "no")
    exact = weights_of(base, files, "no")
    changed = [name for name in exact if not torch.equal(exact[name], before[name])]

    rounded = weights_of(base, files, "bf16")

    assert len(changed) == 40
    for name in changed:
        change = exact[name] - before[name]
        best = relative_error(exact[name].bfloat16().float() - before[name], change)
        assert best > 0.02
        assert relative_error(rounded[name] - before[name], change) < 1.01 * best


@pytest.mark.parametrize("dora", [False, True])
def test_merging_together_is_merging_one_after_the_other_but_for_rounding(dora):
    def adapted() -> list[Adapter]:
        model = small_model()
        return [
            pretend_training(create_adapter("lora", model, dora=dora, seed=seed), seed=seed)
            for seed in range(3)
        ]

    together, in_turn = adapted(), adapted()

    merge_together(together)
    for adapter in in_turn:
        adapter.merge()

    expected = in_turn[0].model.state_dict()
    for name, weight in together[0].model.state_dict().items():
        torch.testing.assert_close(weight, expected[name])


def test_an_adapter_above_those_that_are_merged_stays_on(tmp_path):
    files = small_adapters(tmp_path, 2)
    model = small_model()
    below = [load_adapter(path, model) for path in files]
    above = create_adapter("lora", model)

    merge_together(below)
    above.remove()

    assert not any("delta" in name for name, _module in model.named_modules())
