"""The transformer against numbers that two independent implementations agree on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from golden_model import golden_transformer, read_golden, relative_error

FORWARD_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 2e-4

both_models = pytest.mark.parametrize("golden_name", ["a", "b"])


@both_models
def test_velocity_is_the_reference_velocity(golden_name: str) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name)

    velocity = model(golden["latents"], golden["sigma"], golden["context"])

    assert relative_error(velocity, golden["velocity"]) < FORWARD_TOLERANCE


@both_models
@pytest.mark.parametrize("checkpointed", [False, True])
def test_loss_and_gradients_are_the_reference_ones(golden_name: str, checkpointed: bool) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name)
    model.checkpoint_blocks(checkpointed)

    velocity = model(golden["latents"], golden["sigma"], golden["context"])
    loss = (velocity - golden["target"]).square().mean()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in golden if key.startswith("grad.")]
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])

    assert relative_error(loss, golden["loss"]) < FORWARD_TOLERANCE
    assert len(names) == 8
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_error(gradient, golden[f"grad.{name}"]) < GRADIENT_TOLERANCE, name


@both_models
def test_text_condition_is_the_reference_condition(golden_name: str) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name)

    condition = model.preprocess_text_embeds(
        golden["qwen_hidden"], golden["t5_ids"], golden["qwen_mask"], golden["t5_mask"]
    )

    assert condition.shape == golden["condition"].shape
    assert relative_error(condition, golden["condition"]) < FORWARD_TOLERANCE


@both_models
def test_velocity_from_raw_text_is_the_reference_velocity(golden_name: str) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name)

    condition = model.preprocess_text_embeds(
        golden["qwen_hidden"], golden["t5_ids"], golden["qwen_mask"], golden["t5_mask"]
    )
    velocity = model(golden["latents"], golden["sigma"], condition)

    assert relative_error(velocity, golden["velocity_full"]) < FORWARD_TOLERANCE


@both_models
@pytest.mark.parametrize("cfg", [1, 4])
def test_ten_euler_steps_give_the_reference_sample(golden_name: str, cfg: int) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name).requires_grad_(False)
    positive, negative = golden["condition"][:1], golden["condition"][1:2]

    def guided(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        towards = model(latents, sigma, positive)
        away = model(latents, sigma, negative)
        return away + cfg * (towards - away)

    sample = _euler(guided, golden["sample_noise"], golden["sample_sigmas"])

    assert relative_error(sample, golden[f"sample_cfg{cfg}"]) < GRADIENT_TOLERANCE


def _euler(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,
    sigmas: torch.Tensor,
) -> torch.Tensor:
    for sigma, following in pairwise(sigmas):
        latents = latents + (following - sigma) * velocity(latents, sigma[None])
    return latents
