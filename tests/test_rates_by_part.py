"""Learning rates of parts of the model, by Kohya's options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import anima_pipe, tensors_of

from anima_pipe.errors import ConfigError
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer

Cached = dict[str, object]

PARTS = {
    "llm_adapter_lr": "diffusion_model.llm_adapter.",
    "self_attn_lr": ".self_attn.",
    "cross_attn_lr": ".cross_attn.",
    "mlp_lr": ".mlp.",
    "mod_lr": ".adaln_modulation",
}


def moved(cached: Cached, folder: Path, **values: object) -> dict[str, bool]:
    """Whether each module's change is more than nothing after two steps."""
    given = {"network_args": ["include_patterns=['.*adaln_modulation.*']"], **values}
    tensors = tensors_of(
        anima_pipe("train", folder / "s.json", output_dir=folder, **cached, **given)
    )
    changes = ("lora_B.weight", "lora_up.weight", "w_norm")
    return {name: bool(tensor.any()) for name, tensor in tensors.items() if name.endswith(changes)}


def is_of(part: str, name: str) -> bool:
    in_adapter = PARTS["llm_adapter_lr"] in name
    return in_adapter if part == "llm_adapter_lr" else not in_adapter and PARTS[part] in name


@pytest.mark.parametrize("part", PARTS)
def test_a_part_trains_at_its_own_rate(part: str, cached: Cached, tmp_path: Path):
    alone = moved(cached, tmp_path / "alone", learning_rate=0, **{part: 1e-3})
    assert any(alone.values())
    assert all(is_of(part, name) == change for name, change in alone.items())

    without = moved(cached, tmp_path / "without", learning_rate=1e-3, **{part: 0})
    assert without.keys() == alone.keys()
    assert not any(change for name, change in without.items() if is_of(part, name))
    assert any(change for name, change in without.items() if not is_of(part, name))


def test_a_part_that_is_not_trained_takes_no_rate_but_zero(cached: Cached, tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, mod_lr=1e-4, **cached)
    assert ended.code == 2
    assert "mod_lr is 0.0001, but nothing of that part is trained" in ended.said
    anima_pipe("train", output_dir=tmp_path, mod_lr=0, **cached).ok()


def test_a_resumed_run_keeps_to_the_rates_of_its_parts(cached: Cached, tmp_path: Path):
    given = {"output_dir": tmp_path, "save_state": True, **cached}
    anima_pipe("train", **given, max_train_steps=1, mlp_lr=1e-3).ok()
    refused = anima_pipe("train", **given, mlp_lr=1e-4, resume="latest")
    assert refused.code == 2
    assert "mlp_lr: 0.001 then, 0.0001 now" in refused.said
    anima_pipe("train", **given, mlp_lr=1e-4, resume="latest", resume_allow=["mlp_lr"]).ok()


@pytest.mark.parametrize("kind", ["Prodigy", "DAdaptAdam"])
def test_optimizers_of_one_step_size_refuse_several_rates_before_training(kind: str):
    groups = [
        ParameterGroup(
            name=str(rate), parameters=[torch.nn.Parameter(torch.zeros(2))], learning_rate=rate
        )
        for rate in (1.0, 0.5, 0.0)
    ]
    with pytest.raises(ConfigError, match="finds one step size for all"):
        create_optimizer(groups, OptimizerConfig(kind=kind))
    create_optimizer([groups[0], groups[2]], OptimizerConfig(kind=kind))
