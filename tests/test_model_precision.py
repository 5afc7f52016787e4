"""Which numbers are computed in which precision, and what that buys."""

from __future__ import annotations

import copy

import pytest
import torch
from golden_model import golden_transformer, read_golden, relative_error
from torch import nn

from anima_pipe.model import AnimaTransformer
from anima_pipe.model.embedders import SigmaWaves
from anima_pipe.model.norms import RMSNorm
from anima_pipe.model.products import add_product
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


HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
def test_a_norm_by_weights_in_fp32_has_exact_gradients_and_keeps_no_copy_of_its_input(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 64, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(64, generator=generator).requires_grad_()
    direction = torch.randn(2, 5, 3, 64, generator=generator).to(dtype)
    kept: list[torch.Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        normed = RMSNorm(64).with_weight(x, weight)
    ours = torch.autograd.grad(normed, (x, weight), direction)

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = torch.nn.functional.rms_norm(exact[0], (64,), exact[1], 1e-6)
    wanted = torch.autograd.grad(expected, exact, direction.double())
    assert relative_error(normed.double(), expected) < EPSILON[dtype]
    assert relative_error(ours[0].double(), wanted[0]) < EPSILON[dtype]
    assert relative_error(ours[1].double(), wanted[1]) < 1e-5
    assert not [t for t in kept if t.dtype == torch.float32 and t.numel() == x.numel()]


@pytest.mark.parametrize("dtype", HALF)
def test_the_gradient_of_a_rotation_is_rotated_back_and_rounded_once(dtype):
    rotation = image_rotation(3, 4, 24, "cpu")
    heads = torch.randn(2, 12, 2, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    heads.requires_grad_()

    (gradient,) = torch.autograd.grad(rotate(heads, rotation), heads, heads.detach())

    exact = heads.detach().double().requires_grad_()
    turned = exact * rotation.cos + exact.roll(12, dims=-1) * rotation.signed_sin
    (wanted,) = torch.autograd.grad(turned, exact, exact.detach())
    assert relative_error(gradient.double(), wanted) < EPSILON[dtype]


def test_a_sum_and_product_in_one_has_the_gradients_of_both():
    shapes = ((2, 1, 3), (2, 4, 3), (1, 1, 3))
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    assert torch.autograd.gradcheck(add_product, inputs)
