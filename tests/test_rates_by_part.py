"""Learning rates of parts of the model, by Kohya's options."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import anima_pipe, tensors_of

from anima_pipe.adapters import create_adapter
from anima_pipe.demo import DEMO_TRANSFORMER
from anima_pipe.errors import ConfigError
from anima_pipe.model import load_transformer
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.trained import PartRate

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
def test_a_part_trains_at_its_own_rate_and_at_none_is_not_in_the_file(
    part: str, cached: Cached, tmp_path: Path
):
    alone = moved(cached, tmp_path / "alone", learning_rate=0, **{part: 1e-3})
    assert any(alone.values())
    assert all(is_of(part, name) for name in alone)

    without = moved(cached, tmp_path / "without", learning_rate=1e-3, **{part: 0})
    assert any(without.values())
    assert not any(is_of(part, name) for name in without)


LEFT_ALONE = {
    "text adapter": ({"llm_adapter_lr": 0}, {"train_llm_adapter": False}),
    "norms": ({"network_args": ["norm_lr=0"]}, {"train_norm": False}),
    "pattern": (
        {"network_args": ["network_reg_lrs=.*mlp.*=0"]},
        {"network_args": ["exclude_patterns=['.*mlp.*']"]},
    ),
}


@pytest.mark.parametrize(("at_zero", "without"), LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_a_rate_of_zero_is_the_same_as_leaving_the_part_out(
    at_zero: dict[str, object], without: dict[str, object], cached: Cached, tmp_path: Path
):
    given = {**cached, "max_grad_norm": 1e-3}
    rested, left_out = (
        tensors_of(anima_pipe("train", folder / "s.json", output_dir=folder, **given, **values))
        for folder, values in ((tmp_path / "zero", at_zero), (tmp_path / "out", without))
    )
    assert rested.keys() == left_out.keys()
    assert all(tensor.equal(left_out[name]) for name, tensor in rested.items())


def test_a_part_at_zero_stays_as_it_is_in_the_weights_that_training_starts_from(
    cached: Cached, tmp_path: Path
):
    start = tensors_of(anima_pipe("train", tmp_path / "s.json", output_dir=tmp_path, **cached))
    given = {"network_weights": tmp_path / "fox.safetensors", "mlp_lr": 0, **cached}
    given |= {"optimizer_args": ["weight_decay=0.5"], "scale_weight_norms": 1e-6}
    folder = tmp_path / "on"
    after = tensors_of(anima_pipe("train", folder / "s.json", output_dir=folder, **given))
    assert after.keys() == start.keys()
    same = {name for name, tensor in start.items() if tensor.equal(after[name])}
    of_part = {name for name in start if is_of("mlp_lr", name)}
    assert of_part <= same
    assert not any("lora_B" in name for name in same - of_part)


def test_nothing_of_a_part_at_zero_is_put_on_the_model_or_run_backward():
    model = load_transformer(DEMO_TRANSFORMER).requires_grad_(requires_grad=False)
    part = PartRate(name="llm_adapter", pattern=r"llm_adapter\..*", rate=0.0)
    adapter = create_adapter("lora", model, parts=[part])
    assert not any(path.startswith("llm_adapter.") for path in adapter.deltas)
    width = model.config.llm_adapter.source_width
    context = model.preprocess_text_embeds(torch.ones(1, 3, width), torch.ones(1, 3).long())
    assert not context.requires_grad


def test_a_run_in_which_no_part_is_left_to_train_is_refused(cached: Cached, tmp_path: Path):
    given = dict.fromkeys(("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr"), 0)
    ended = anima_pipe("train", output_dir=tmp_path, train_norm=False, **given, **cached)
    assert ended.code == 2
    assert "nothing is left to train" in ended.said


def test_a_part_that_is_not_trained_takes_no_rate_but_zero(cached: Cached, tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, mod_lr=1e-4, **cached)
    assert ended.code == 2
    assert "mod_lr is 0.0001, but nothing of that part is trained" in ended.said
    anima_pipe("train", output_dir=tmp_path, mod_lr=0, **cached).ok()


@pytest.mark.parametrize("kind", ["Lion", "Prodigy"])
def test_a_part_may_train_alone_under_an_optimizer_that_refuses_a_rate_of_zero(
    kind: str, cached: Cached, tmp_path: Path
):
    alone = {"unet_lr": 0, "mlp_lr": 1e-4, "optimizer_type": kind}
    given = {"output_dir": tmp_path, "max_train_steps": 1, **alone, **cached}
    ended = anima_pipe("train", tmp_path / "summary.json", **given)
    assert all(".mlp." in name for name in tensors_of(ended))


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
        create_optimizer(groups, OptimizerConfig(optimizer_type=kind))
    create_optimizer([groups[0], groups[2]], OptimizerConfig(optimizer_type=kind))
