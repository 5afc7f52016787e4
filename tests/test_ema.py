"""The moving average of an adapter, step by step."""

from dataclasses import replace

import pytest
import torch
from golden_model import golden_transformer

from anima_pipe.adapters import create_adapter
from anima_pipe.errors import ConfigError
from anima_pipe.hooks.ema import Ema
from anima_pipe.records import Moment, StepResult

TAKEN = StepResult(loss=1.0, grad_norm=1.0, learning_rates={}, samples=1)


def moment(step: int, result: StepResult | None = TAKEN) -> Moment:
    return Moment(step=step, epoch=1, ends_epoch=False, is_last=False, result=result)


def test_the_average_follows_its_formula_and_comes_and_goes_without_a_trace():
    adapter = create_adapter("lora", golden_transformer("a"), network_dim=2)
    ema = Ema(adapter, 0.5)
    name = next(name for name, _ in adapter.named_parameters())
    expected = adapter.state_dict()[name].clone()
    for step in range(1, 6):
        for parameter in adapter.parameters():
            parameter.data.add_(0.1 * step)
        ema.at(moment(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * adapter.state_dict()[name]
    trained = adapter.state_dict()[name].clone()
    with ema.in_place():
        assert torch.allclose(adapter.state_dict()[name], expected)
    assert torch.equal(adapter.state_dict()[name], trained)


def test_nothing_is_averaged_before_the_first_step():
    ema = Ema(create_adapter("lora", golden_transformer("a"), network_dim=2), 0.9)
    assert not ema.due(moment(0, result=None))
    assert ema.due(moment(1))
    assert not ema.due(moment(6, result=None)), "a resumed run stands where it stood"


def test_a_step_that_was_passed_over_is_not_averaged():
    ema = Ema(create_adapter("lora", golden_transformer("a"), network_dim=2), 0.9)
    assert not ema.due(moment(1, replace(TAKEN, loss=None)))


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ConfigError, match="ema_decay"):
        Ema(create_adapter("lora", golden_transformer("a"), network_dim=2), decay)
