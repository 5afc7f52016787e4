"""Which numbers are computed in which precision, and what that buys."""

from __future__ import annotations

import copy

import pytest
import torch
from golden_model import golden_transformer, read_golden, relative_error
from torch import nn

from anima_pipe.model import AnimaTransformer
from anima_pipe.model.blocks import RMSNorm
from anima_pipe.model.embedders import SigmaWaves
from anima_pipe.model.rope import image_rotation, rotate

half_precisions = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

# One rounding is half of this; a forward pass through two or three blocks adds up a few.
EPSILON = {torch.bfloat16: 2**-7, torch.float16: 2**-10}


@half_precisions
@pytest.mark.parametrize("golden_name", ["a", "b"])
def test_half_precision_weights_give_nearly_the_same_velocity(
    golden_name: str, dtype: torch.dtype
) -> None:
    golden = read_golden(golden_name)
    model = golden_transformer(golden_name).to(dtype)

    velocity = _velocity_from_text(model, golden)

    assert relative_error(velocity, golden["velocity_full"]) < 3 * EPSILON[dtype]


@half_precisions
def test_half_precision_gradients_are_finite_and_near(dtype: torch.dtype) -> None:
    golden = read_golden("a")
    exact, rounded = golden_transformer("a"), golden_transformer("a").to(dtype)

    for model in (exact, rounded):
        (_velocity_from_text(model, golden) - golden["target"]).square().mean().backward()

    wanted = _gradient(exact, "blocks.0.self_attn.q_proj.weight")
    actual = _gradient(rounded, "blocks.0.self_attn.q_proj.weight")
    assert relative_error(actual.float(), wanted) < 10 * EPSILON[dtype]


def test_fp16_weights_survive_a_residual_stream_beyond_the_range_of_fp16() -> None:
    golden = read_golden("a")
    inputs = golden["latents"], golden["sigma"], golden["context"]
    exact = golden_transformer("a").requires_grad_(False)
    # Every linear still stays within fp16, as the released model's do; their gated sum does not.
    for name in ("x_embedder", "blocks.0.mlp.layer2", "blocks.1.cross_attn.output_proj"):
        module = exact.get_submodule(name)
        largest = _largest_output(exact, name, inputs)
        for parameter in module.parameters():
            parameter.mul_(60000 / largest)
    rounded = copy.deepcopy(exact).half()

    assert _largest_output(exact, "blocks.1", inputs) > 1.1 * torch.finfo(torch.float16).max
    assert relative_error(rounded(*inputs), exact(*inputs)) < 5 * EPSILON[torch.float16]


@half_precisions
def test_velocity_comes_in_the_dtype_of_the_latents(dtype: torch.dtype) -> None:
    golden = read_golden("a")
    model = golden_transformer("a").to(dtype)

    for latents in (golden["latents"], golden["latents"].to(dtype)):
        velocity = model(latents, golden["sigma"], golden["context"])
        assert velocity.dtype == latents.dtype


def test_sigma_is_not_rounded_to_the_dtype_of_the_weights() -> None:
    sigma = torch.tensor([0.7001, 0.7002])  # The same number in bf16.

    waves = SigmaWaves(64).to(torch.bfloat16)(sigma)

    assert waves.dtype == torch.float32
    angle = (sigma.double()[:, None] * 10000.0 ** (-torch.arange(32).double() / 32)).float()
    assert torch.allclose(waves, torch.cat([angle.cos(), angle.sin()], -1), atol=1e-6)


@pytest.mark.parametrize("head_width", [12, 32, 64, 128])
def test_rotation_is_the_plain_rotation_of_pairs_by_row_and_column(head_width: int) -> None:
    rows, columns, half = 3, 5, head_width // 2
    heads = torch.randn(1, rows * columns, 2, head_width)

    rotated = rotate(heads, image_rotation(rows, columns, head_width, "cpu"))

    axis = head_width // 6 * 2
    base = 10000 * 4 ** (axis / (axis - 2))
    time_pairs = half - axis
    for token in range(rows * columns):
        for pair in range(half):
            on_axis = pair - time_pairs
            position = 0 if on_axis < 0 else divmod(token, columns)[on_axis >= axis // 2]
            angle = torch.tensor(position * base ** -(2 * (on_axis % (axis // 2)) / axis))
            first, second = heads[0, token, :, pair], heads[0, token, :, pair + half]
            turned = first * angle.cos() - second * angle.sin()
            assert torch.allclose(rotated[0, token, :, pair], turned, atol=2e-6)


@half_precisions
def test_rotation_of_a_far_token_is_rounded_once_only(dtype: torch.dtype) -> None:
    rotation = image_rotation(1, 200, 32, "cpu")
    heads = torch.randn(1, 200, 1, 32).to(dtype)

    exact = rotate(heads.float(), rotation)

    assert torch.equal(rotate(heads, rotation), exact.to(dtype))


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_is_rounded_once_whatever_the_dtypes(
    x_dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(64)
    nn.init.normal_(norm.weight, mean=1.0, std=0.1)
    norm.to(weight_dtype)
    x = (100 * torch.randn(50, 64)).to(x_dtype)  # Squares that fp16 cannot hold.

    normed = norm(x)

    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    assert normed.dtype == x_dtype
    # Half a unit in the last place is one rounding; the rest is what fp32 takes on the way.
    tolerance = torch.finfo(x_dtype).eps / 2 + 1e-6
    assert ((normed.double() - exact).abs() <= tolerance * exact.abs() + 1e-7).all()


def _velocity_from_text(model: AnimaTransformer, golden: dict[str, torch.Tensor]) -> torch.Tensor:
    condition = model.preprocess_text_embeds(
        golden["qwen_hidden"], golden["t5_ids"], golden["qwen_mask"], golden["t5_mask"]
    )
    assert condition.dtype == model.dtype
    return model(golden["latents"], golden["sigma"], condition)


def _largest_output(
    model: AnimaTransformer, name: str, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> float:
    largest: list[float] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: largest.append(output.abs().max().item())
    )
    model(*inputs)
    hook.remove()
    return largest[0]


def _gradient(model: AnimaTransformer, name: str) -> torch.Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient
