"""Adapters on a model: what they change, what they leave alone, and how they come off again."""

from __future__ import annotations

import pytest
import torch
from golden_model import golden_transformer, read_golden, relative_error
from torch import nn

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.model import AnimaTransformer, TransformerConfig

GOLDEN = read_golden("a")


def velocity(model: nn.Module) -> torch.Tensor:
    """Run the whole model, text adapter and all, on the golden inputs in the model's dtype."""
    dtype = next(model.parameters()).dtype
    context = model.preprocess_text_embeds(
        GOLDEN["qwen_hidden"].to(dtype), GOLDEN["t5_ids"], GOLDEN["qwen_mask"], GOLDEN["t5_mask"]
    )
    return model(GOLDEN["latents"].to(dtype), GOLDEN["sigma"], context)


def pretend_training(adapter: Adapter, size: float = 0.05) -> None:
    """Move every trainable tensor, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


@pytest.fixture
def model() -> AnimaTransformer:
    return golden_transformer("a").requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_adapter_changes_nothing(model, dtype):
    model.to(dtype)
    before = velocity(model)

    create_adapter("lora", model)

    assert torch.equal(velocity(model), before)


def test_the_default_targets_of_the_released_model_are_340_linears_and_156_norms():
    with torch.device("meta"):
        model = AnimaTransformer(TransformerConfig(blocks=28))

    adapter = create_adapter("lora", model, network_dim=16)

    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 515
    assert sum(row.count for row in adapter.table() if row.kind == "lora") == 340
    assert sum(row.count for row in adapter.table() if row.kind == "norm") == 156


def test_only_the_adapter_receives_gradients(model):
    adapter = create_adapter("lora", model)

    velocity(model).square().mean().backward()

    trained = {id(parameter) for parameter in adapter.parameters()}
    assert {id(p) for p in model.parameters() if p.grad is not None} == trained


def test_merging_gives_the_model_that_was_trained(model):
    adapter = create_adapter("lora", model)
    pretend_training(adapter)
    trained = velocity(model)

    adapter.merge()

    assert type(model.blocks[0].self_attn.q_proj) is nn.Linear
    assert relative_error(velocity(model), trained) < 2e-6
