"""How many operations a step of the released model's structure asks of a device."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from launches import Launches, Pass, training_pass

from anima_pipe.hooks.ema import Ema
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.records import Moment, StepResult
from anima_pipe.trainer.measures import group_norms

KINDS = {
    "lokr": ("lokr", {}),
    "lokr of a thin factor": ("lokr", {"network_dim": 2}),
    "loha": ("loha", {}),
    "dora": ("lora", {"dora": True}),
    "tlora": ("tlora", {}),
}


def launches_of(taken: Pass) -> tuple[int, int]:
    """Return the operations of a forward and a backward pass that are not the first."""
    taken.run().backward()
    for parameter in taken.adapter.parameters():
        parameter.grad = None
    with Launches() as forward:
        loss = taken.run()
    with Launches() as backward:
        loss.backward()
    return forward.count, backward.count


@pytest.fixture(scope="module")
def of_lora() -> int:
    return sum(launches_of(training_pass()))


def test_a_pass_of_lora_and_norms_asks_for_few_operations(of_lora: int):
    assert of_lora <= 8_300


def test_checkpointed_blocks_ask_for_a_fourth_more():
    assert sum(launches_of(training_pass(checkpointed=True))) <= 10_600


@pytest.mark.parametrize("case", KINDS)
def test_a_pass_of_another_kind_asks_for_a_fourth_more_than_loras_at_most(case: str, of_lora: int):
    kind, arguments = KINDS[case]
    assert sum(launches_of(training_pass(kind, **arguments))) <= 1.25 * of_lora


def made_for_a_pass(taken: Pass) -> int:
    """Return how many of an adapter's deltas hold something that was made for a pass."""
    names = ("copies", "gain_copy", "changed_weight")
    held = [
        [getattr(delta, name, None) for name in names] for delta in taken.adapter.deltas.values()
    ]
    return sum(any(isinstance(each, torch.Tensor) or each for each in own) for own in held)


def test_what_is_made_for_a_pass_is_there_until_its_gradients_are_and_no_longer():
    taken = training_pass(checkpointed=True, dora=True)

    loss = taken.run()
    during = made_for_a_pass(taken)
    loss.backward()
    after = made_for_a_pass(taken)
    with torch.no_grad():
        taken.run()

    assert (during, after) == (len(taken.adapter.deltas), 0)
    assert made_for_a_pass(taken) == 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_weights_that_change_between_passes_are_seen_by_the_next(checkpointed: bool):
    taken = training_pass(checkpointed=checkpointed)
    losses: list[float] = []
    for _step in range(3):
        loss = taken.run()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            # Not through an operation that torch counts as a change, as 8-bit optimizers do it.
            for parameter in taken.adapter.parameters():
                parameter.data.add_(0.05)
    with torch.no_grad():
        losses.append(taken.run().item())
    assert len(set(losses)) == 4


def after_the_gradients(*, in_bf16: bool) -> int:
    """Return the operations of clipping, optimizer, rounding, norm limits, averages and norms."""
    taken = training_pass()
    adapter, accelerator = taken.adapter, Accelerator(cpu=True)
    linear, norms = adapter.groups()
    parameters = [linear.parameters, norms.parameters]
    groups = [
        ParameterGroup(name=group.name, parameters=group.parameters, learning_rate=1e-2)
        for group in (linear, norms)
    ]
    optimizer = create_optimizer(groups, OptimizerConfig())
    optimizer.register_step_post_hook(lambda *_: adapter.limit_norms(0.01))
    if in_bf16:
        StochasticRounding(optimizer, adapter.matrices(), seed=1)
    average = Ema(adapter, 0.9)
    result = StepResult(loss=1.0, grad_norm=1.0, learning_rates={}, samples=1)
    operations = 0
    for step in (1, 2):
        taken.run().backward()
        with Launches() as after:
            total = accelerator.clip_grad_norm_([p for own in parameters for p in own], 1.0)
            assert isinstance(total, torch.Tensor)
            group_norms(parameters, total, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.at(Moment(step=step, epoch=1, ends_epoch=False, is_last=False, result=result))
        operations = after.count
    return operations


@pytest.mark.parametrize("in_bf16", [False, True])
def test_what_follows_the_gradients_is_done_to_all_tensors_at_once(in_bf16: bool):
    assert after_the_gradients(in_bf16=in_bf16) <= 150
