"""The transformer and its text adapter against diffusers' own, on weights drawn afresh."""

from __future__ import annotations

import pytest
import torch
from diffusers_parity import (
    diffusers_condition,
    diffusers_name,
    diffusers_text_conditioner,
    diffusers_transformer,
    diffusers_velocity,
)
from golden_model import relative_error

from anima_pipe.model import AnimaTransformer, LlmAdapterConfig, TransformerConfig

CONFIGS = {
    "as released, narrow": TransformerConfig(
        width=48,
        blocks=2,
        head_width=24,
        context_width=20,
        adaln_width=8,
        mlp_width=192,
        llm_adapter=LlmAdapterConfig(
            source_width=12,
            width=20,
            output_width=20,
            blocks=2,
            head_width=10,
            mlp_width=80,
            vocabulary=64,
        ),
    ),
    "wide heads, no padding mask, adapter of another width": TransformerConfig(
        width=128,
        blocks=1,
        head_width=128,
        context_width=20,
        adaln_width=8,
        mlp_width=256,
        padding_mask=False,
        llm_adapter=LlmAdapterConfig(
            source_width=12,
            width=32,
            output_width=20,
            blocks=1,
            head_width=8,
            mlp_width=128,
            vocabulary=64,
            in_proj=True,
        ),
    ),
}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@every_config
def test_velocity_and_gradients_are_those_of_diffusers(config: TransformerConfig) -> None:
    torch.manual_seed(0)
    ours = _random_model(config)
    theirs = diffusers_transformer(ours.state_dict(), config)
    latents, sigma = torch.randn(2, 16, 8, 14), torch.tensor([0.02, 0.93])
    context, target = torch.randn(2, 9, config.context_width), torch.randn(2, 16, 8, 14)

    velocity = ours(latents, sigma, context)
    expected = diffusers_velocity(theirs, latents, sigma, context)
    (velocity - target).square().mean().backward()
    (expected - target).square().mean().backward()

    assert relative_error(velocity, expected) < 2e-5
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if not name.startswith("llm_adapter."):
            assert _close(parameter.grad, gradients[diffusers_name(name)]), name


@every_config
def test_condition_and_gradients_are_those_of_diffusers(config: TransformerConfig) -> None:
    torch.manual_seed(1)
    ours = _random_model(config)
    theirs = diffusers_text_conditioner(ours.state_dict(), config)
    hidden, ids = torch.randn(3, 6, 12), torch.randint(2, 64, (3, 7))
    qwen_mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    t5_mask = torch.arange(7) < torch.tensor([[5], [7], [1]])
    hidden = hidden * qwen_mask.unsqueeze(-1)

    condition = ours.preprocess_text_embeds(hidden, ids, qwen_mask, t5_mask)
    expected = diffusers_condition(theirs, hidden, ids, qwen_mask, t5_mask)
    weights = torch.randn_like(condition)
    (condition * weights).sum().backward()
    (expected * weights).sum().backward()

    assert relative_error(condition, expected) < 2e-5
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.llm_adapter.named_parameters():
        assert _close(parameter.grad, gradients[name]), name


def _random_model(config: TransformerConfig) -> AnimaTransformer:
    model = AnimaTransformer(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            # Norms start at one, which would hide a norm of the wrong place.
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def _close(actual: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    assert actual is not None
    assert expected is not None
    return relative_error(actual, expected) < 2e-4
