"""A frozen base in 8 bits: how near it is, what it takes, and that adapters train on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_cases import KINDS, pretend_training, small_model, velocity
from commands import anima_pipe, tensors_of
from golden_model import relative_error
from torch import nn

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.eight_bit import LARGEST, EightBitLinear, keep_in_eight_bits
from anima_pipe.export.verification import verify_export
from anima_pipe.model import BLOCK_LAYERS, AnimaTransformer

Cached = dict[str, object]


def eight_bit_model(dtype: torch.dtype = torch.float32) -> AnimaTransformer:
    model = small_model(dtype)
    assert keep_in_eight_bits(model, BLOCK_LAYERS) == 2 * 10
    return model


def random_layer(outputs: int = 24, inputs: int = 16, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_every_number_is_kept_to_half_a_step_of_its_row(size):
    layer = random_layer()
    layer.weight.mul_(size * torch.logspace(-2, 2, 24)[:, None])
    layer.weight[3].zero_()

    kept = EightBitLinear(layer).weight_in(torch.float32)

    step = layer.weight.abs().amax(1, keepdim=True) / LARGEST
    # The step is rounded up to a bf16 number.
    assert ((kept - layer.weight).abs() <= step * (0.5 + 2**-7)).all()


def test_weights_spread_like_a_normal_distribution_are_kept_to_one_percent():
    layer = nn.Linear(1024, 64)
    layer.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    kept = EightBitLinear(layer).weight_in(torch.float32)
    float8 = layer.weight.to(torch.float8_e4m3fn).float()

    error, of_float8 = (
        (other - layer.weight).norm() / layer.weight.norm() for other in (kept, float8)
    )

    assert error < 0.01
    assert error < of_float8 / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_in_8_bits_multiplies_by_the_weight_it_keeps(dtype):
    layer = EightBitLinear(random_layer().to(dtype))
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    weight = layer.weight_in(torch.float64)

    output = layer(x)
    output.float().square().sum().backward()

    exact = x.detach().double().requires_grad_()
    expected = exact @ weight.T + layer.bias.double()
    expected.square().sum().backward()
    rounding = 4 * torch.finfo(dtype).eps
    assert output.dtype == dtype
    assert relative_error(output.double(), expected) < rounding
    assert relative_error(x.grad.double(), exact.grad) < 4 * rounding


def test_the_blocks_take_a_quarter_of_fp32_and_the_rest_stays_as_it_is():
    whole, kept = small_model(), eight_bit_model()
    bytes_of = {
        name: sum(t.nbytes for t in [*model.blocks.parameters(), *model.blocks.buffers()])
        for name, model in (("whole", whole), ("kept", kept))
    }
    modulations = sum(
        p.nbytes for n, p in whole.blocks.named_parameters() if "adaln" in n or "norm" in n
    )

    bulk = bytes_of["whole"] - modulations
    assert bytes_of["kept"] - modulations < 0.27 * bulk
    own = dict(whole.named_parameters())
    same = [n for n, p in kept.named_parameters() if p.dtype != torch.int8]
    assert all(torch.equal(own[n], kept.get_parameter(n)) for n in same)
    assert len(own) - len(same) == 20


@pytest.mark.parametrize("case", KINDS)
def test_adapters_on_a_base_in_8_bits_change_it_as_they_change_a_whole_one(case):
    kind, arguments = KINDS[case]
    model = eight_bit_model()
    whole = small_model()
    for path, module in model.named_modules():
        if isinstance(module, EightBitLinear):
            whole.get_submodule(path).weight.copy_(module.weight_in(torch.float32))
    results = []
    for each in (model, whole):
        adapter = pretend_training(create_adapter(kind, each, **arguments))
        output = velocity(each)
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in adapter.parameters())])

    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_on_a_base_in_8_bits_are_near_those_on_the_whole_one(dtype):
    gradients = []
    for model in (small_model(), eight_bit_model(dtype)):
        adapter = pretend_training(create_adapter("lora", model))
        velocity(model).float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters()]))

    assert (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.05


def test_a_fresh_adapter_changes_nothing_of_a_base_in_8_bits():
    model = eight_bit_model(torch.bfloat16)
    before = velocity(model)

    create_adapter("lora", model)

    assert torch.equal(velocity(model), before)


def test_an_adapter_trained_in_8_bits_is_exported_and_loaded_as_any_other(tmp_path):
    model = eight_bit_model()
    adapter = pretend_training(create_adapter("lora", model))

    path = save_adapter(adapter, tmp_path / "a.safetensors")

    assert verify_export(path, adapter.deltas) < 1e-6
    loaded = small_model()
    load_adapter(path, loaded)
    error = relative_error(velocity(loaded), velocity(model))
    assert 0 < error < 0.05


def test_merging_into_a_base_in_8_bits_rounds_to_them_anew():
    model = eight_bit_model()
    adapter = pretend_training(create_adapter("lora", model))
    trained = velocity(model)

    adapter.merge()

    assert isinstance(model.blocks[0].mlp.layer1, EightBitLinear)
    assert relative_error(velocity(model), trained) < 0.05


def test_a_run_with_a_base_in_8_bits_trains_nearly_the_same(cached: Cached, tmp_path: Path):
    found = []
    for option in ({}, {"fp8_base": True}, {"fp8_base_unet": True}):
        folder = tmp_path / "-".join(["run", *option])
        given = {"output_dir": folder, "max_train_steps": 3, "learning_rate": 1e-3, "seed": 1}
        tensors = tensors_of(anima_pipe("train", folder / "s.json", **given, **option, **cached))
        found.append(torch.cat([t.flatten() for n, t in tensors.items() if "lora_B" in n]))

    whole, eight_bits, other_name = found
    assert torch.equal(eight_bits, other_name)
    assert not torch.equal(eight_bits, whole)
    assert nn.functional.cosine_similarity(eight_bits, whole, dim=0) > 0.9
