"""Adapters in bf16: no small step is lost on average, and a resumed run rounds as before."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, small_model, velocity
from commands import anima_pipe, tensors_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from anima_pipe.adapters import create_adapter
from anima_pipe.optimizing.optimizers import (
    OPTIMIZERS,
    OptimizerConfig,
    ParameterGroup,
    averaged_weights,
    create_optimizer,
    steps_by_tensor,
)
from anima_pipe.optimizing.rounding import StochasticRounding, round_by_chance

Cached = dict[str, object]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Paged optimizers are not supported on CPU",
    "ignore::DeprecationWarning",  # dadaptation and came_pytorch call torch in older forms.
    "ignore:This overload of",
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(value=st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False))
@settings(max_examples=200)
def test_a_number_is_rounded_to_one_of_its_neighbours_with_the_right_mean(value):
    exact = torch.full((4000,), value)
    rounded = round_by_chance(exact, generator()).double()

    step = max(abs(value) * 2**-7, torch.finfo(torch.bfloat16).tiny)
    assert (rounded - value).abs().max() <= step
    assert rounded.unique().numel() <= 2
    assert abs(rounded.mean().item() - value) <= 0.05 * step


@pytest.mark.parametrize("value", [0.0, -1.5, 2.0**127, float("inf"), float("-inf")])
def test_what_bf16_can_hold_stays(value):
    assert (round_by_chance(torch.full((100,), value), generator()) == value).all()


def test_nan_stays_nan():
    assert round_by_chance(torch.full((100,), float("nan")), generator()).isnan().all()


ADAPTIVE = [kind for kind in OPTIMIZERS if kind.startswith(("DAdapt", "Prodigy"))]
"""They find their step size, and run away under a gradient that never changes."""


def moved(kind: str, in_bf16: bool, rate: float, steps: int) -> float:
    """Return how far weights of one move on average: down, or towards a place not far away."""
    weight = torch.nn.Parameter(torch.ones(64, 64))
    group = ParameterGroup(name="linear", parameters=[weight], learning_rate=rate)
    optimizer = create_optimizer([group], OptimizerConfig(optimizer_type=kind))
    if in_bf16:
        StochasticRounding(optimizer, [weight], seed=1)
    for _step in range(steps):
        weight.grad = weight.detach() - 0.9 if kind in ADAPTIVE else torch.ones_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    assert weight.dtype == (torch.bfloat16 if in_bf16 else torch.float32)
    with averaged_weights(optimizer):
        return 1 - weight.double().mean().item()


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind not in ADAPTIVE])
def test_steps_too_small_for_bf16_are_not_lost_on_average(kind):
    rate = 1e-5 if kind.startswith("SGD") else 1e-4

    exact, rounded = (moved(kind, in_bf16, rate, 40) for in_bf16 in (False, True))

    assert exact != 0
    assert abs(rounded - exact) < 0.15 * abs(exact) + 2e-4


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_optimizers_that_find_their_step_find_it_in_bf16_too(kind):
    exact, rounded = (moved(kind, in_bf16, 1.0, 60) for in_bf16 in (False, True))

    assert abs(rounded - exact) < 0.3 * abs(exact) + 2e-4


def test_without_it_such_steps_would_all_be_lost():
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    for _step in range(40):
        weight -= 1e-4

    assert (weight == 1).all()


def test_what_is_drawn_depends_on_seed_and_step_alone():
    def run(seed: int, disturbed: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.ones(8, 8))
        optimizer = torch.optim.SGD([weight], lr=1e-3)
        StochasticRounding(optimizer, [weight], seed)
        for _step in range(3):
            torch.rand(5 if disturbed else 1)
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(1, disturbed=False), run(1, disturbed=True))
    assert not torch.equal(run(1, disturbed=False), run(2, disturbed=False))


@pytest.mark.parametrize("kind", ["AdamW", "Lion", "AdamW8bit", "Prodigy", "AdamWScheduleFree"])
def test_a_state_taken_back_goes_on_to_the_bit(kind):
    def start():
        weight = torch.nn.Parameter(torch.randn(70, 70, generator=generator()))
        group = ParameterGroup(name="linear", parameters=[weight], learning_rate=1e-3)
        optimizer = create_optimizer([group], OptimizerConfig(optimizer_type=kind))
        return weight, optimizer, StochasticRounding(optimizer, [weight], seed=1)

    def train(weight, optimizer, numbers):
        for number in numbers:
            weight.grad = torch.randn(70, 70, generator=generator(number)).to(weight.dtype)
            optimizer.step()
            optimizer.zero_grad()

    weight, optimizer, rounding = start()
    train(weight, optimizer, range(3))
    state, values = copy.deepcopy(rounding.state_dict()), weight.detach().clone()
    other, its_optimizer, its_rounding = start()
    other.data.copy_(values)
    its_rounding.load_state_dict(state)

    for each in ((weight, optimizer), (other, its_optimizer)):
        train(*each, range(3, 6))

    assert torch.equal(weight, other)


@pytest.mark.parametrize("case", [*KINDS, "pissa"])
def test_a_fresh_adapter_in_bf16_changes_nothing(case):
    kind, arguments = {**KINDS, "pissa": ("lora", {"pissa": True})}[case]
    model = small_model(torch.bfloat16)
    before = velocity(model)
    adapter = create_adapter(kind, model, **arguments)

    adapter.start_from_rounded(torch.bfloat16)
    StochasticRounding(torch.optim.SGD(adapter.parameters(), lr=1), adapter.matrices(), seed=1)

    assert torch.equal(velocity(model), before)
    assert adapter.dtype == torch.bfloat16
    assert {p.dtype for p in adapter.parameters() if p.ndim == 1} <= {torch.float32}


def test_a_run_in_bf16_throughout_is_resumed_to_the_bit(cached: Cached, tmp_path: Path):
    given = {"full_bf16": True, "mixed_precision": "bf16", "seed": 3, "learning_rate": 1e-3}
    given |= {"max_train_steps": 4, "save_every_n_steps": 2, "save_state": True, **cached}
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    ended = anima_pipe("train", whole / "s.json", output_dir=whole, **given).ok()
    shutil.copytree(whole, rest)

    state = next(rest.glob("*step00000002-state"))
    resumed = anima_pipe("train", rest / "s.json", output_dir=rest, **given, resume=state).ok()

    assert "adapter in bfloat16" in ended.said
    expected, found = tensors_of(ended), tensors_of(resumed)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    matrices = [t for name, t in load_file(state / "adapter.safetensors").items() if "lora" in name]
    assert {t.dtype for t in matrices} == {torch.bfloat16}


def test_doras_scales_are_fp32_in_all_that_a_run_in_bf16_writes(cached: Cached, tmp_path: Path):
    given = {"full_bf16": True, "mixed_precision": "bf16", "save_precision": "bf16"}
    given |= {"network_args": ["dora=true"], "max_train_steps": 1, "save_state": True, **cached}

    anima_pipe("train", output_dir=tmp_path, **given).ok()

    for path in (tmp_path / "fox.safetensors", tmp_path / "fox-state" / "adapter.safetensors"):
        tensors = load_file(path)
        scales = {t.dtype for name, t in tensors.items() if name.endswith("dora_scale")}
        factors = {t.dtype for name, t in tensors.items() if "lora_A" in name}
        assert (scales, factors) == ({torch.float32}, {torch.bfloat16})


def test_an_average_of_an_adapter_in_bf16_is_kept_in_fp32(cached: Cached, tmp_path: Path):
    given = {"full_bf16": True, "mixed_precision": "bf16", "max_train_steps": 3, "ema_decay": 0.9}
    anima_pipe("train", output_dir=tmp_path, learning_rate=1e-3, **given, **cached).ok()

    assert (tmp_path / "fox-ema.safetensors").exists()


def test_an_adapter_in_bf16_beside_a_base_in_fp32_is_refused(cached: Cached, tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, full_bf16=True, **cached)

    assert ended.code == 2
    assert "full_bf16 is set, but mixed_precision is no" in ended.said


@pytest.mark.parametrize("kind", ["AdamW", "AdamW8bit", "Lion", "CAME", "Adafactor", "SGDNesterov"])
def test_a_step_in_pieces_is_the_step_in_one(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anima_pipe.optimizing.rounding.PIECE_NUMBERS", 5000)

    def run(piecewise: bool) -> tuple[list[torch.Tensor], list[int]]:
        shapes = [(70, 70), (3,), (64, 64), (80, 80), (5,)]
        weights = [torch.nn.Parameter(torch.randn(s, generator=generator(9))) for s in shapes]
        groups = [
            ParameterGroup(name=str(n), parameters=weights[n::2], learning_rate=10.0 ** -(2 + n))
            for n in range(2)
        ]
        optimizer = create_optimizer(groups, OptimizerConfig(optimizer_type=kind))
        wide: list[int] = []
        StochasticRounding(optimizer, weights, seed=1, piecewise=piecewise)
        optimizer.register_step_pre_hook(
            lambda *_: wide.append(sum(w.numel() for w in weights if w.dtype == torch.float32))
        )
        for number in range(3):
            for weight in weights:
                noise = torch.randn(weight.shape, generator=generator(number))
                weight.grad = noise.to(weight.dtype)
            optimizer.step()
        return weights, wide

    (in_one, all_wide), (in_pieces, some_wide) = run(piecewise=False), run(piecewise=True)
    assert all(torch.equal(*pair) for pair in zip(in_one, in_pieces, strict=True))
    assert set(all_wide) == {sum(weight.numel() for weight in in_one)}
    assert max(some_wide) < 6410, "no more than the largest tensor and what fits beside it"


def test_optimizers_that_count_for_all_tensors_together_step_in_one():
    by_tensor = {
        kind for kind in OPTIMIZERS if steps_by_tensor(OptimizerConfig(optimizer_type=kind))
    }
    assert by_tensor >= {"AdamW", "AdamW8bit", "Lion", "Adafactor", "CAME", "SGDNesterov"}
    assert not any("ScheduleFree" in kind or kind in ADAPTIVE for kind in by_tensor)


def test_norms_are_limited_after_the_whole_of_a_step(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {"full_bf16": True, "mixed_precision": "bf16", "scale_weight_norms": 0.01, **cached}
    given |= {"learning_rate": 1e-2, "max_train_steps": 3}
    in_one = tensors_of(anima_pipe("train", tmp_path / "a.json", output_dir=tmp_path, **given))
    monkeypatch.setattr("anima_pipe.optimizing.rounding.PIECE_NUMBERS", 100)
    other = tmp_path / "other"
    in_pieces = tensors_of(anima_pipe("train", other / "b.json", output_dir=other, **given))

    assert all(torch.equal(tensor, in_pieces[name]) for name, tensor in in_one.items())
