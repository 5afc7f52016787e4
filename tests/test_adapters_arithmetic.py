"""The arithmetic of each adapter kind against plain matrices and against LyCORIS."""

from __future__ import annotations

import pytest
import torch
from golden_model import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from lycoris.functional import factorization
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import nn

from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.loha import hadamard, loha_delta
from anima_pipe.adapters.lokr import factorize, lokr_delta
from anima_pipe.adapters.lora import lora_delta

SIZES = st.sampled_from([1, 2, 7, 12, 13, 16, 24, 31, 36])
"""Square, tall, wide and prime shapes come of drawing two of them."""

CASES = {
    "lora": ("lora", {}),
    "lokr": ("lokr", {}),
    "lokr-both": ("lokr", {"lokr_decompose_both": True}),
    "lokr-full": ("lokr", {"lokr_full_matrix": True}),
    "lokr-square": ("lokr", {"lokr_factor": -1}),
    "loha": ("loha", {}),
    "rs-lora": ("lora", {"rs_lora": True}),
    "dora-rows": ("lora", {"dora": True}),
    "dora-columns": ("loha", {"dora": True, "wd_on_output": False}),
}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def adapted_linear(
    kind: str, inputs: int, outputs: int, **arguments
) -> tuple[nn.Module, Delta, torch.Tensor]:
    """Return a layer with an adapter of random values in fp64, its delta, and its frozen weight."""
    model = nn.ModuleDict({"q_proj": nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)})
    adapter = create_adapter(kind, model, target_modules="q_proj", **arguments)
    model.double()
    with torch.no_grad():
        for number, parameter in enumerate(adapter.parameters()):
            parameter.copy_(random(*parameter.shape, seed=number))
    weight = model["q_proj"].base.weight.detach()
    return model["q_proj"], adapter.deltas["q_proj"], weight


@pytest.mark.parametrize("case", CASES)
@given(inputs=SIZES, outputs=SIZES, rank=st.integers(1, 9), alpha=st.sampled_from([None, 0.5, 8.0]))
@settings(max_examples=40)
def test_the_forward_pass_is_that_of_the_changed_weight(case, inputs, outputs, rank, alpha):
    kind, arguments = CASES[case]
    layer, delta, weight = adapted_linear(
        kind, inputs, outputs, network_dim=rank, network_alpha=alpha, **arguments
    )
    x = random(2, 3, inputs, seed=9)

    changed = weight + delta.weight_changes({"weight": weight})["weight"]

    torch.testing.assert_close(layer(x), x @ changed.T)


@given(inputs=SIZES, outputs=SIZES, rank=st.integers(1, 5), scale=st.floats(-2, 2))
@settings(max_examples=30)
def test_lora_and_its_gradients_are_those_of_the_product_of_its_factors(
    inputs, outputs, rank, scale
):
    x, down, up = random(4, inputs), random(rank, inputs, seed=1), random(outputs, rank, seed=2)
    leaves = [tensor.requires_grad_() for tensor in (x, down, up)]
    direction = random(4, outputs, seed=3)

    ours = lora_delta(x, down, up, scale)
    plain = x @ (scale * up @ down).T

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(plain, leaves, direction)
    )


@given(
    blocks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    inner=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    rank=st.sampled_from([None, 1, 2, 9]),
    scale=st.floats(-2, 2),
)
@settings(max_examples=40)
def test_lokr_and_its_gradients_are_those_of_the_kronecker_product(blocks, inner, rank, scale):
    first = random(*blocks, seed=1)
    second = (
        [random(*inner, seed=2)]
        if rank is None
        else [random(inner[0], rank, seed=2), random(rank, inner[1], seed=3)]
    )
    x = random(2, 3, blocks[1] * inner[1])
    leaves = [tensor.requires_grad_() for tensor in (x, first, *second)]
    direction = random(2, 3, blocks[0] * inner[0], seed=4)

    ours = lokr_delta(x, first, second, scale)
    whole = second[0] if rank is None else second[0] @ second[1]
    plain = x @ (scale * torch.kron(first, whole)).T

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(plain, leaves, direction)
    )


@given(inputs=SIZES, outputs=SIZES, rank=st.integers(1, 4), scale=st.floats(-2, 2))
@settings(max_examples=40)
def test_loha_and_its_gradients_are_those_of_the_elementwise_product(inputs, outputs, rank, scale):
    shapes = [(outputs, rank), (rank, inputs)] * 2
    factors = [random(*shape, seed=number) for number, shape in enumerate(shapes)]
    leaves = [tensor.requires_grad_() for tensor in (random(2, 3, inputs, seed=8), *factors)]
    direction = random(2, 3, outputs, seed=9)

    ours = loha_delta(leaves[0], factors, scale)
    plain = leaves[0] @ (scale * hadamard(factors)).T

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(plain, leaves, direction)
    )


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (13, 16)])
@pytest.mark.parametrize("rs_lora", [False, True])
def test_loha_agrees_with_lycoris_in_value_and_gradient(shape, rs_lora):
    outputs, inputs = shape
    arguments = {"rs_lora": rs_lora}
    ours, delta, weight = adapted_linear(
        "loha", inputs, outputs, network_dim=3, network_alpha=2.0, **arguments
    )
    base = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    base.weight.data.copy_(weight)
    theirs = LohaModule("q", base, lora_dim=3, alpha=2.0, **arguments).double()
    with torch.no_grad():
        for name, parameter in delta.trained().items():
            getattr(theirs, name).copy_(parameter)
    x, direction = random(3, inputs, seed=7), random(3, outputs, seed=8)

    ours(x).backward(direction)
    theirs(x).backward(direction)

    torch.testing.assert_close(ours(x), theirs(x))
    for name, parameter in delta.trained().items():
        torch.testing.assert_close(parameter.grad, getattr(theirs, name).grad)
    assert delta.file_tensors()["alpha"].item() == pytest.approx(theirs.alpha.item())


@pytest.mark.parametrize("by_row", [True, False])
def test_dora_starts_from_the_norms_of_the_base_and_trains_them(by_row):
    layer, delta, weight = adapted_linear("lora", 12, 16, dora=True, wd_on_output=by_row)
    with torch.no_grad():
        delta.up.zero_()
        delta.dora_scale.copy_(2 * weight.norm(dim=1 if by_row else 0, keepdim=True))

    # ComfyUI adds the least step of fp32 to every norm.
    torch.testing.assert_close(layer(torch.eye(12).double()).T, 2 * weight, rtol=2e-6, atol=0)
    assert delta.dora_scale.shape == ((16, 1) if by_row else (1, 12))


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_a_limit_holds_the_norm_of_a_change_and_leaves_smaller_ones_alone(kind):
    _layer, delta, weight = adapted_linear(kind, 12, 16, network_dim=2)
    before = delta.weight_changes({"weight": weight})["weight"].detach()

    delta.limit_norms([delta], 2 * before.norm().item())
    assert torch.equal(delta.weight_changes({"weight": weight})["weight"], before)
    delta.limit_norms([delta], before.norm().item() / 3)

    torch.testing.assert_close(delta.weight_changes({"weight": weight})["weight"], before / 3)


@pytest.mark.parametrize("factor", [-1, 1, 2, 3, 4, 7, 8, 12, 16, 64])
def test_dimensions_are_split_as_lycoris_splits_them(factor):
    sizes = range(1, 3000)

    assert [factorize(size, factor) for size in sizes] == [
        factorization(size, factor) for size in sizes
    ]


@pytest.mark.parametrize(
    ("size", "factor", "parts"),
    [
        (2048, 8, (8, 256)),
        (2048, -1, (32, 64)),
        (8192, -1, (64, 128)),
        (100, 8, (5, 20)),
        (97, 8, (1, 97)),
        (2048, 7, (4, 512)),
    ],
)
def test_dimensions_of_the_released_model_are_split_as_in_published_files(size, factor, parts):
    assert factorize(size, factor) == parts


@pytest.mark.parametrize(
    ("inputs", "outputs", "arguments", "shapes"),
    [
        (2048, 2048, {"network_dim": 16}, [(8, 8), (256, 16), (16, 256)]),
        (2048, 8192, {"network_dim": 16}, [(8, 8), (1024, 16), (16, 256)]),
        (2048, 2048, {"network_dim": 128}, [(8, 8), (256, 256)]),
        (2048, 2048, {"network_dim": 100_000}, [(8, 8), (256, 256)]),
        (
            2048,
            2048,
            {"network_dim": 2, "lokr_decompose_both": True},
            [(8, 2), (2, 8), (256, 2), (2, 256)],
        ),
    ],
)
def test_a_lokr_has_the_tensors_that_published_files_have(inputs, outputs, arguments, shapes):
    with torch.device("meta"):
        model = nn.ModuleDict({"q_proj": nn.Linear(inputs, outputs, bias=False)})

    adapter = create_adapter("lokr", model, target_modules="q_proj", **arguments)

    assert [tuple(parameter.shape) for parameter in adapter.parameters()] == shapes


def test_a_small_lokr_worked_out_by_hand():
    layer, delta, weight = adapted_linear(
        "lokr", 4, 6, network_dim=1, network_alpha=2.0, lokr_factor=2
    )
    values = {
        "lokr_w1": [[1.0, 2.0], [3.0, 4.0]],
        "lokr_w2_a": [[1.0], [2.0], [3.0]],
        "lokr_w2_b": [[10.0, 1.0]],
    }
    with torch.no_grad():
        for name, parameter in delta.trained().items():
            parameter.copy_(torch.tensor(values[name]))

    change = layer(torch.eye(4, dtype=torch.float64)).T - weight

    expected = [
        [20, 2, 40, 4],
        [40, 4, 80, 8],
        [60, 6, 120, 12],
        [60, 6, 80, 8],
        [120, 12, 160, 16],
        [180, 18, 240, 24],
    ]
    torch.testing.assert_close(change, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (12, 20), (13, 16)])
@pytest.mark.parametrize(
    ("rank", "arguments"),
    [
        (1, {}),
        (1, {"decompose_both": True}),
        (100_000, {"full_matrix": True}),
    ],
)
def test_lokr_agrees_with_lycoris_in_value_and_gradient(shape, rank, arguments):
    outputs, inputs = shape
    ours, delta, weight = adapted_linear(
        "lokr",
        inputs,
        outputs,
        network_dim=rank,
        network_alpha=2.0,
        lokr_factor=4,
        **{f"lokr_{name}": value for name, value in arguments.items()},
    )
    base = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
    base.weight.data.copy_(weight)
    theirs = LokrModule("q", base, lora_dim=rank, alpha=2.0, factor=4, **arguments).double()
    state = {name.removeprefix("lokr_"): t.detach() for name, t in delta.trained().items()}
    with torch.no_grad():
        for name, value in state.items():
            getattr(theirs, f"lokr_{name}").copy_(value)
    x, direction = random(3, inputs, seed=7), random(3, outputs, seed=8)

    ours(x).backward(direction)
    theirs(x).backward(direction)

    torch.testing.assert_close(ours(x), theirs(x))
    for name, parameter in delta.trained().items():
        torch.testing.assert_close(parameter.grad, getattr(theirs, name).grad)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("lora", {"network_dim": 2, "network_alpha": 2}),
        ("lokr", {"network_dim": 100_000}),
        ("loha", {"network_dim": 1, "network_alpha": 1}),
    ],
)
def test_a_planted_change_of_its_own_kind_is_recovered(kind, arguments):
    layer, delta, weight = adapted_linear(kind, 12, 16, **arguments)
    planted = weight + delta.weight_changes({"weight": weight})["weight"].detach() / 4
    for number, parameter in enumerate(delta.parameters()):
        parameter.data.copy_(random(*parameter.shape, seed=20 + number) / 4)
    optimizer = torch.optim.Adam(delta.parameters(), lr=0.03)
    x = random(64, 12, seed=30)

    for _step in range(600):
        optimizer.zero_grad()
        (layer(x) - x @ planted.T).square().mean().backward()
        optimizer.step()

    assert relative_error(layer(torch.eye(12, dtype=torch.float64)).T, planted) < 1e-3
