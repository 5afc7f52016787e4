"""Weights kept in fp32 and computed with in half precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from golden_model import golden_transformer, read_golden, relative_error
from torch import nn

from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.model import AnimaTransformer
from anima_pipe.model.masters import MasterLinear
from anima_pipe.trained import PartRate

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def mixed(dtype: torch.dtype, *parts: PartRate) -> AnimaTransformer:
    model = golden_transformer("a")
    WholeModel(model, parts)
    model.compute_in(dtype)
    return model


def step(model: AnimaTransformer) -> torch.Tensor:
    """Run a picture through a model with its caption, and its error back."""
    golden = read_golden("a")
    texts: list[Any] = [golden[n] for n in ("qwen_hidden", "t5_ids", "qwen_mask", "t5_mask")]
    context = model.preprocess_text_embeds(*texts)
    velocity = model(golden["latents"], golden["sigma"], context)
    (velocity - golden["target"]).square().mean().backward()
    return velocity.detach()


@halves
@pytest.mark.parametrize("bias", [False, True])
def test_a_layers_gradients_are_those_of_a_layer_of_cast_weights(dtype: torch.dtype, bias: bool):
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias)
    cast = copy.deepcopy(layer).to(dtype)
    inputs = [torch.randn(3, 4, 7).to(dtype).requires_grad_() for _ in range(1)] * 2
    kept = MasterLinear(layer)
    outputs = [module(x) for module, x in zip((kept, cast), inputs, strict=True)]
    assert torch.equal(*outputs)

    of_inputs: list[torch.Tensor] = []
    for output in outputs:
        inputs[0].grad = None
        (output.float() * torch.arange(5)).sum().backward()
        of_inputs.append(inputs[0].grad)
    assert torch.equal(*of_inputs)
    for (name, own), expected in zip(kept.named_parameters(), cast.parameters(), strict=True):
        assert own.grad.dtype == torch.float32
        assert torch.allclose(own.grad, expected.grad.float(), rtol=2e-2), name


@halves
def test_a_model_of_masters_computes_what_a_model_in_half_precision_does(dtype: torch.dtype):
    cast = golden_transformer("a").to(dtype)
    model = copy.deepcopy(cast).float()
    model.compute_in(dtype)

    assert model.dtype == dtype
    assert torch.equal(step(model), step(cast))

    gradients = {name: weight.grad for name, weight in cast.named_parameters()}
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
        assert relative_error(weight.grad, gradients[name].float()) < 0.05, name


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_in_mixed_precision_are_near_the_exact_ones(checkpointed: bool):
    exact, rounded = golden_transformer("a"), mixed(torch.bfloat16)
    rounded.checkpoint_blocks(checkpointed)

    for model in (exact, rounded):
        step(model)

    wanted = dict(exact.named_parameters())
    errors = [
        relative_error(weight.grad, wanted[name].grad)
        for name, weight in rounded.named_parameters()
    ]
    assert sorted(errors)[len(errors) // 2] < 0.03
    assert max(errors) < 0.3


def test_what_does_not_train_is_kept_in_half_precision_where_that_loses_nothing():
    left_alone = PartRate(name="mlp", pattern=r"blocks\.\d+\.mlp\..*", rate=0.0)
    model = golden_transformer("a")
    with torch.no_grad():
        first = model.get_parameter("blocks.0.mlp.layer1.weight")
        first.copy_(first.bfloat16())
        model.get_parameter("blocks.0.mlp.layer2.weight").add_(2**-20)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    WholeModel(model, [left_alone])
    model.compute_in(torch.bfloat16)

    dtypes = {name: weight.dtype for name, weight in model.named_parameters()}
    assert dtypes["blocks.0.mlp.layer1.weight"] == torch.bfloat16
    assert dtypes["blocks.0.mlp.layer2.weight"] == torch.float32
    assert dtypes["blocks.0.self_attn.q_proj.weight"] == torch.float32
    step(model)
    for name, weight in model.named_parameters():
        assert torch.equal(weight.float(), before[name])
        assert (weight.grad is None) == left_alone.holds(name.rpartition(".")[0])


def test_between_two_passes_a_layer_keeps_its_input_and_no_cast_weight():
    layer = MasterLinear(nn.Linear(64, 64, bias=False))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        layer(torch.randn(2, 64).bfloat16().requires_grad_())

    assert [(tensor.dtype, tensor.numel()) for tensor in kept] == [
        (torch.bfloat16, 2 * 64),
        (torch.float32, 64 * 64),
    ]
    assert kept[1].data_ptr() == layer.weight.data_ptr()
