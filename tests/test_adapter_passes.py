"""The fast pass of each kind is the plain one, and what is made anew is what was there."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from adapter_cases import GOLDEN, KINDS, pretend_training, small_model, velocity
from torch import nn

from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.frozen import (
    PlainLinear,
    frozen_linear,
    lora_linear,
    merged_linear,
)
from anima_pipe.adapters.frozen_lokr import lokr_linear, thin_lokr_linear
from anima_pipe.adapters.loha import FORMING_TOKENS, as_lora, hadamard, loha_delta
from anima_pipe.adapters.loha import merges as loha_merges
from anima_pipe.adapters.lokr import MERGING_TOKENS, lokr_delta
from anima_pipe.adapters.lokr import merges as lokr_merges
from anima_pipe.adapters.lora import lora_delta
from anima_pipe.model.recomputed import forgetting, recomputed

SHAPES = [(16, 16), (24, 8), (8, 24), (13, 12), (7, 11)]
"""Square, tall, wide, half prime, prime: (out, in)."""


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_of(outputs: int, inputs: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)
    layer.weight.copy_(random(outputs, inputs, seed=40))
    return layer


def passes(kind: str, layer: nn.Linear, scale: float):
    """Return the trained factors, the fast pass and the plain one of a kind, by its name here."""
    outputs, inputs = layer.weight.shape
    base = PlainLinear(layer)
    if kind == "lora":
        factors = [random(3, inputs, seed=1), random(outputs, 3, seed=2)]
        return (
            factors,
            lambda x, down, up: lora_linear(x, base, down, up, scale),
            lambda x, down, up: layer(x) + lora_delta(x, down, up, scale),
        )
    if kind.startswith("lokr"):
        rows, columns = (next(n for n in (4, 2, 1) if size % n == 0) for size in (outputs, inputs))
        factors = [
            random(rows, columns, seed=1),
            random(outputs // rows, inputs // columns, seed=2),
        ]
        merged = kind == "lokr whole"
        return (
            factors,
            lambda x, small, large: lokr_linear(x, base, small, large, scale, merged=merged),
            lambda x, small, large: layer(x) + lokr_delta(x, small, [large], scale),
        )
    if kind == "lokr thin":
        rows, columns = (next(n for n in (4, 2, 1) if size % n == 0) for size in (outputs, inputs))
        shapes = [(rows, columns), (outputs // rows, 3), (3, inputs // columns)]
        return (
            [random(*shape, seed=number) for number, shape in enumerate(shapes)],
            lambda x, small, *large: thin_lokr_linear(x, base, small, large, scale),
            lambda x, small, *large: layer(x) + lokr_delta(x, small, large, scale),
        )
    shapes = [(outputs, 2), (2, inputs)] * 2
    if kind == "loha pairs":
        return (
            [random(*shape, seed=number) for number, shape in enumerate(shapes)],
            lambda x, *f: lora_linear(x, base, *as_lora([t.to(x.dtype) for t in f]), scale),
            lambda x, *f: layer(x) + F.linear(x, (hadamard(f) * scale).to(x.dtype)),
        )
    return (
        [random(*shape, seed=number) for number, shape in enumerate(shapes)],
        lambda x, *f: merged_linear(x, base, lambda *parts: hadamard(parts) * scale, f),
        lambda x, *f: layer(x) + loha_delta(x, f, scale),
    )


FAST = ["lora", "lokr factors", "lokr whole", "lokr thin", "loha whole", "loha pairs"]


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
# In half precision no weight is summed with its change: the sum would round the change away.
USED = [(kind, dtype) for kind in FAST for dtype in TOLERANCES if kind != "lokr whole"]
USED += [("lokr whole", torch.float64), ("lokr whole", torch.float32)]


@pytest.mark.parametrize(("kind", "dtype"), USED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_the_fast_pass_of_a_kind_is_the_plain_one_in_values_and_gradients(kind, dtype, shape, bias):
    factors, fast, plain = passes(kind, layer_of(*shape, dtype, bias), 0.7)
    masters = dtype if dtype == torch.float64 else torch.float32
    direction = random(2, 5, shape[0], seed=9).to(dtype)
    results = []
    for one in (fast, plain):
        x = random(2, 5, shape[1], seed=8).to(dtype).requires_grad_()
        leaves = [x, *(factor.to(masters).requires_grad_() for factor in factors)]
        output = one(*leaves)
        results.append([output, *torch.autograd.grad(output, leaves, direction)])

    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        error = (ours - theirs).float().norm() / theirs.float().norm()
        assert error < TOLERANCES[dtype]


@pytest.mark.parametrize("kind", FAST)
def test_the_gradients_of_the_fast_passes_are_those_of_small_steps(kind):
    factors, fast, _plain = passes(kind, layer_of(6, 4, torch.float64, bias=True), 0.7)
    leaves = [tensor.requires_grad_() for tensor in (random(3, 4, seed=8), *factors)]

    assert torch.autograd.gradcheck(fast, leaves)


def test_a_scale_for_every_rank_of_every_sample_acts_in_both_passes():
    layer, scale = layer_of(6, 4, torch.float64), random(2, 1, 3, seed=5)
    x, down, up = random(2, 5, 4), random(3, 4, seed=1), random(6, 3, seed=2)
    leaves = [tensor.requires_grad_() for tensor in (x, down, up)]

    ours = lora_linear(*leaves[:1], PlainLinear(layer), *leaves[1:], 0.7, scale)
    plain = layer(x) + lora_delta(*leaves, 0.7 * scale)

    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(plain.sum(), leaves)
    )


@pytest.mark.parametrize("module", [nn.Identity(), nn.Linear(3, 3)], ids=["other", "trains"])
def test_only_a_linear_layer_that_does_not_train_is_frozen(module):
    assert frozen_linear(module) is None


@pytest.mark.parametrize(
    ("kind", "tokens", "arguments"),
    [
        ("lokr", 4 * MERGING_TOKENS, {"lokr_factor": 4, "lokr_full_matrix": True}),
        # Of rank 4 on 16 x 16 a LoHa is a LoRA of rank 16: six products with the weight to one.
        ("loha", FORMING_TOKENS // 5, {"network_dim": 4}),
    ],
)
def test_on_both_sides_of_where_its_form_changes_a_kind_gives_the_same(kind, tokens, arguments):
    model = nn.ModuleDict({"q_proj": layer_of(16, 16, torch.float32)})
    adapter = create_adapter(kind, model, target_modules="q_proj", **arguments)
    pretend_training(adapter, size=0.3)
    delta = adapter.deltas["q_proj"]
    x = random(tokens, 16).float()
    choose = {
        "lokr": lambda x: lokr_merges(x, delta.first[0]),
        "loha": lambda x: loha_merges(x, list(delta.factors)),
    }[kind]
    results = []

    for shares in ((x,), x.split(tokens - 1)):
        for parameter in adapter.parameters():
            parameter.grad = None
        outputs = torch.cat([model["q_proj"](share) for share in shares])
        outputs.square().sum().backward()
        results.append([outputs, *(parameter.grad for parameter in adapter.parameters())])

    assert [choose(share) for share in (x, *x.split(tokens - 1))] == [True, False, False]
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_blocks_forget_changes_no_gradient(case, dtype):
    kind, arguments = KINDS[case]
    gradients = []
    for checkpointed in (False, True):  # Where blocks are checkpointed, nothing is forgotten.
        model = small_model(dtype)
        model.checkpoint_blocks(checkpointed)
        adapter = pretend_training(create_adapter(kind, model, **arguments))
        velocity(model).float().square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])

    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


class Whole(nn.Module):
    """The golden model and its inputs as one module, whose one argument is the noise levels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, _sigmas: torch.Tensor) -> torch.Tensor:
        return velocity(self.model)


@pytest.mark.parametrize("case", [*KINDS, "pissa"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_done_for_all_layers_at_once_is_what_each_does_by_itself(case, checkpointed):
    kind, arguments = KINDS.get(case, ("lora", {"pissa": True}))
    results = []
    for together in (False, True):
        model = small_model(torch.bfloat16)
        model.checkpoint_blocks(checkpointed)
        adapter = pretend_training(create_adapter(kind, model, **arguments))
        whole = Whole(model)
        if together:
            adapter.follow_passes(whole, place=0)
        output = whole(GOLDEN["sigma"])
        output.float().square().mean().backward()
        results.append([output, *(parameter.grad for parameter in adapter.parameters())])

    assert all(map(torch.equal, *results))


def test_the_norms_that_dora_compares_with_follow_a_weight_that_is_merged_into():
    model = nn.ModuleDict({"q_proj": layer_of(6, 4, torch.float32)})
    dora = create_adapter("lora", model, target_modules="q_proj", dora=True)
    above = pretend_training(create_adapter("lora", model, target_modules="q_proj"), size=1.0)
    x = random(3, 4).float()
    model["q_proj"](x)

    above.merge()

    with torch.no_grad():
        scale = dora.deltas["q_proj"].dora_scale
        weight = model["q_proj"].base.weight
        expected = x @ (weight * scale / weight.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(model["q_proj"](x), expected)


def activation_of(keep: bool) -> tuple[torch.Tensor, weakref.ref[torch.Tensor], nn.Linear]:
    """Run gelu and a layer; return the output, and who was activated on the way."""
    layer, x = nn.Linear(4, 3), random(5, 4, dtype=torch.float32).requires_grad_()

    def run() -> tuple[torch.Tensor, weakref.ref[torch.Tensor]]:
        activated = recomputed(F.gelu, x)
        return layer(activated), weakref.ref(activated)

    if keep:
        return *run(), layer
    with forgetting():
        return *run(), layer


def test_a_pass_without_a_backward_pass_leaves_nothing_behind():
    model = small_model()
    adapter = create_adapter("lora", model, network_dim=4)
    trained = [weakref.ref(parameter) for parameter in adapter.parameters()]
    output = velocity(model)
    assert output.requires_grad

    del output, model, adapter
    gc.collect()
    assert [reference for reference in trained if reference() is not None] == []


def test_a_recomputed_tensor_is_not_kept_and_gives_the_same_gradient():
    torch.manual_seed(0)
    kept, there, plain = activation_of(keep=True)
    torch.manual_seed(0)
    forgotten, gone, layer = activation_of(keep=False)

    kept.sum().backward()
    forgotten.sum().backward()

    assert (gone(), there() is None) == (None, True)
    assert torch.equal(layer.weight.grad, plain.weight.grad)


def test_a_gradient_may_be_asked_for_twice():
    output, _gone, layer = activation_of(keep=False)

    first = torch.autograd.grad(output.sum(), layer.weight, retain_graph=True)[0]
    second = torch.autograd.grad(output.sum(), layer.weight)[0]

    assert torch.equal(first, second)


def test_what_is_made_of_something_made_is_made_again_from_the_start_and_once():
    calls: list[str] = []

    def first(x: torch.Tensor) -> torch.Tensor:
        calls.append("first")
        return x.exp()

    def second(x: torch.Tensor) -> torch.Tensor:
        calls.append("second")
        return x.sigmoid()

    x = random(4, 4).requires_grad_()
    with forgetting():
        one = recomputed(first, x)
        two = recomputed(second, one)
        output = (two.square() * one).sum()
    gone = weakref.ref(one), weakref.ref(two)
    del one, two
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert calls == ["first", "second"]

    (gradient,) = torch.autograd.grad(output, x)

    assert calls[2:] in (["first", "second"], ["second", "first"])
    plain = (x.exp().sigmoid().square() * x.exp()).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, x)[0])


def test_a_pass_whose_output_is_dropped_frees_what_it_kept():
    gc.disable()
    try:
        x = random(4, 4, dtype=torch.float32).requires_grad_()
        with forgetting():
            output = recomputed(torch.exp, x).sigmoid()
        kept = weakref.ref(output)
        del output
        assert kept() is None
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # The compiler warns of what it does itself.
def test_blocks_with_adapters_compile_and_give_the_same():
    results = []
    for compiled in (False, True):
        model = small_model()
        adapter = pretend_training(create_adapter("lora", model))
        for block in model.blocks if compiled else ():
            block.compile(backend="aot_eager", fullgraph=True)
        output = velocity(model)
        output.square().mean().backward()
        results.append([output, *(parameter.grad for parameter in adapter.parameters())])

    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
