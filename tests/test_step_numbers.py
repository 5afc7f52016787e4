"""What a training step makes of the objective's options, from what the model is shown.

The model here keeps what it is fed and predicts nothing: its velocity is zero, so that the loss is
that of the target alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anima_pipe.dataset.batches import MicroBatch, Window, pad_texts
from anima_pipe.kohya.objective import objective_config
from anima_pipe.kohya.resolve import resolve
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Batch, TextCondition
from anima_pipe.trainer import TrainerConfig, start_accelerate
from anima_pipe.trainer.step import TrainStep

SHAPE = (3, 16, 24, 32)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
Options = dict[str, object]


class Watcher(torch.nn.Module):
    """Keeps its input; its velocity is a trained zero."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(()))

    def forward(self, noisy: torch.Tensor, sigmas: torch.Tensor, *_text: Any) -> torch.Tensor:
        self.noisy, self.sigmas = noisy.clone(), sigmas.clone()
        return noisy * 0 + self.zero


def step(options: Options, **batch: Any) -> tuple[float, Watcher]:
    """Take one step on three samples; return its loss and the model that saw it."""
    watcher = Watcher()
    optimizer = torch.optim.SGD([{"params": [watcher.zero], "name": "linear"}], lr=0.1)
    objective = objective_config(resolve("train", options))
    accelerator = start_accelerate("no", cpu=True)
    take = TrainStep(
        accelerator,
        watcher,
        accelerator.prepare_optimizer(optimizer),
        create_schedule(optimizer, ScheduleConfig(), 1),
        TrainerConfig(max_train_steps=1, objective=objective, seed=4),
    )
    given: dict[str, Any] = {
        "latents": LATENTS,
        "text": pad_texts([TextCondition(torch.zeros(1, 4), torch.ones(1).int())] * 3),
        "weights": torch.ones(3),
        "sigma_offsets": torch.zeros(3),
        "names": ("a", "b", "c"),
        "masks": None,
    }
    share = MicroBatch(batch=Batch(**{**given, **batch}), weight=1.0, place=0)
    window = Window(epoch=0, index=0, ends_epoch=True, samples=3, micro_batches=(share,))
    return take(0, window, stop=False).loss, watcher


def noise_of(watcher: Watcher) -> torch.Tensor:
    """The noise in what the model was shown: x = (1 - t) x0 + t e."""
    t = watcher.sigmas.view(-1, 1, 1, 1)
    return (watcher.noisy - (1 - t) * LATENTS) / t


HALVES = torch.zeros(3, *SHAPE[2:])
HALVES[:, :12] = 0.5
HALVES[2] = 1.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"noise_offset": 0.3, "timestep_sampling": "shift", "discrete_flow_shift": 3.0},
        {"loss_type": "l1", "weighting_scheme": "sigma_sqrt"},
        {"loss_type": "huber", "huber_schedule": "exponential", "weighting_scheme": "cosmap"},
    ],
)
@pytest.mark.parametrize("masks", [None, HALVES], ids=["whole", "masked"])
def test_the_loss_is_that_of_the_velocity_weighted_and_masked(
    options: Options, masks: torch.Tensor | None
):
    weights = [0.25, 1.0, 3.0]
    loss, watcher = step(options, weights=torch.tensor(weights), masks=masks)
    error = (noise_of(watcher) - LATENTS).double()
    expected = 0.0
    for sample, (t, weight) in enumerate(zip(watcher.sigmas.double(), weights, strict=True)):
        match options.get("loss_type"):
            case "l1":
                elements = error[sample].abs() / t**2
            case "huber":
                turn = 0.1**t
                elements = 2 * turn * ((error[sample] ** 2 + turn**2).sqrt() - turn)
                elements = elements * 2 / (torch.pi * (1 - 2 * t + 2 * t**2))
            case _:
                elements = error[sample] ** 2
        # A mask says where to look, not how much a picture counts.
        seen = elements if masks is None or sample == 2 else elements[:, :12]
        expected += weight * seen.mean().item() / 3
    assert loss == pytest.approx(expected, rel=1e-4)


def test_noise_on_the_input_is_not_in_the_target():
    plain, clean = step({})
    loss, watcher = step({"ip_noise_gamma": 0.3})
    assert loss == plain
    added = noise_of(watcher) - noise_of(clean)
    assert added.std().item() == pytest.approx(0.3, rel=0.03)


def test_every_sample_is_moved_by_its_own_offset():
    offsets = torch.tensor([-0.5, 0.0, 0.7])
    _, plain = step({"sigmoid_scale": 1.3})
    _, moved = step({"sigmoid_scale": 1.3}, sigma_offsets=offsets)
    found = torch.logit(moved.sigmas) - torch.logit(plain.sigmas)
    assert torch.allclose(found, 1.3 * offsets, atol=1e-4)
    assert torch.allclose(noise_of(moved), noise_of(plain), atol=1e-4)


def test_noise_levels_and_losses_are_fp32():
    _, watcher = step({})
    assert watcher.sigmas.dtype == watcher.noisy.dtype == torch.float32
