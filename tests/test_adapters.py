"""Adapters on a model: what they change, what they leave alone, and how they come off again."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import GOLDEN, KINDS, pretend_training, small_model, velocity
from golden_model import relative_error
from torch import nn

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.model import AnimaTransformer


@pytest.fixture
def model() -> AnimaTransformer:
    return small_model()


@pytest.fixture(params=KINDS)
def case(request) -> tuple[str, dict[str, object]]:
    return KINDS[request.param]


def adapt(model: AnimaTransformer, case: tuple[str, dict[str, object]], **more) -> Adapter:
    kind, arguments = case
    return create_adapter(kind, model, **{**arguments, **more})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_adapter_changes_nothing(case, dtype):
    model = small_model(dtype)
    before = velocity(model)

    adapt(model, case)

    assert torch.equal(velocity(model), before)


def test_the_tensors_that_train_are_fp32_whatever_the_base_is(case):
    adapter = adapt(small_model(torch.bfloat16), case)

    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_only_the_adapter_receives_gradients(model, case):
    adapter = pretend_training(adapt(model, case))

    velocity(model).square().mean().backward()

    trained = {id(parameter) for parameter in adapter.parameters()}
    received = {id(p) for p in model.parameters() if p.grad is not None and p.grad.any()}
    assert received == trained


def test_parameters_of_the_model_keep_their_values_and_their_requires_grad(model):
    model.blocks[1].requires_grad_(True)
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}

    create_adapter("lora", model)

    after = {by_identity[id(p)]: p for p in model.parameters() if id(p) in by_identity}
    assert after.keys() == before.keys()
    for name, (value, requires_grad) in before.items():
        assert torch.equal(after[name], value)
        assert after[name].requires_grad == requires_grad


def test_the_same_seed_starts_the_same_whatever_was_drawn_before(case):
    torch.manual_seed(1)
    first = adapt(small_model(), case, seed=5).state_dict()
    torch.manual_seed(2)
    second = adapt(small_model(torch.bfloat16), case, seed=5).state_dict()
    other = adapt(small_model(), case, seed=6).state_dict()

    # The norms that DoRA starts from are those of the base, in its dtype.
    drawn = [name for name in first if not name.endswith("dora_scale")]
    assert all(torch.equal(first[name], second[name]) for name in drawn)
    assert not all(torch.equal(first[name], other[name]) for name in drawn)


def test_creating_an_adapter_draws_nothing_from_the_global_generator(model, case):
    before = torch.get_rng_state()

    adapt(model, case)

    assert torch.equal(torch.get_rng_state(), before)


def test_merging_gives_the_model_that_was_trained(model, case):
    adapter = pretend_training(adapt(model, case))
    trained = velocity(model)

    adapter.merge()

    assert type(model.blocks[0].self_attn.q_proj) is nn.Linear
    assert relative_error(velocity(model), trained) < 5e-6


def test_merging_rounds_once_to_the_dtype_of_the_base(case):
    exact, rounded = small_model(torch.bfloat16).float(), small_model(torch.bfloat16)
    pretend_training(adapt(exact, case)).merge()

    pretend_training(adapt(rounded, case)).merge()

    expected = {name: value.bfloat16() for name, value in exact.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in rounded.state_dict().items())


def test_removing_an_adapter_gives_the_model_back(model, case):
    modules, before = list(model.modules()), velocity(model)
    adapter = pretend_training(adapt(model, case))

    adapter.remove()

    assert [id(module) for module in model.modules()] == [id(module) for module in modules]
    assert torch.equal(velocity(model), before)


def test_strength_scales_the_change_of_the_weights(case):
    half, whole, base = small_model(), small_model(), small_model().state_dict()
    weak, strong = pretend_training(adapt(half, case)), pretend_training(adapt(whole, case))
    weak.set_strength(0.5)

    weak.merge()
    strong.merge()

    changed = whole.state_dict()
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value - base[name], (changed[name] - base[name]) / 2)


def test_strength_acts_in_the_forward_pass_as_in_the_merge(model, case):
    adapter = pretend_training(adapt(model, case))
    adapter.set_strength(0.7)
    weakened = velocity(model)

    adapter.merge()

    assert relative_error(velocity(model), weakened) < 5e-6


def test_an_adapter_switched_off_is_as_if_it_were_not_there(model, case):
    before = velocity(model)
    adapter = pretend_training(adapt(model, case))
    adapter.set_strength(0.7)
    adapted = velocity(model)

    with adapter.disabled():
        assert torch.equal(velocity(model), before)
    assert torch.equal(velocity(model), adapted)


def test_adapters_on_one_model_add_up(model, case):
    other = small_model()
    pretend_training(create_adapter("lora", other), seed=2).merge()
    pretend_training(adapt(other, case)).merge()

    below = pretend_training(create_adapter("lora", model), seed=2)
    above = pretend_training(adapt(model, case))

    assert relative_error(velocity(model), velocity(other)) < 5e-6
    assert below.state_dict().keys() >= {"blocks.0.self_attn.q_norm.w_norm"}
    assert above.state_dict().keys() >= {"blocks.0.self_attn.q_norm.w_norm"}


@pytest.mark.parametrize("order", ["lower first", "upper first"])
def test_adapters_on_one_model_merge_in_any_order(model, order):
    adapters = [pretend_training(create_adapter("lora", model, seed=n), seed=n) for n in (1, 2)]
    trained = velocity(model)

    for adapter in adapters if order == "lower first" else reversed(adapters):
        adapter.merge()

    assert relative_error(velocity(model), trained) < 5e-6


def test_an_adapter_comes_off_from_under_another(model):
    below = pretend_training(create_adapter("lora", model), seed=1)
    above = pretend_training(create_adapter("lora", model), seed=2)
    alone = small_model()
    pretend_training(create_adapter("lora", alone), seed=2)

    below.remove()

    assert torch.equal(velocity(model), velocity(alone))
    above.remove()
    assert torch.equal(velocity(model), velocity(small_model()))


def test_gradient_checkpointing_changes_no_gradient_even_with_dropout(case):
    dropouts = {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2}
    gradients = []
    for checkpointed in (False, True):
        model = small_model().train()
        model.checkpoint_blocks(checkpointed)
        adapter = pretend_training(adapt(model, case, **dropouts))
        torch.manual_seed(3)
        velocity(model).square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])

    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout", "module_dropout"])
def test_dropout_acts_in_training_alone(case, dropout):
    model = small_model().train()
    pretend_training(adapt(model, case, **{dropout: 0.5}))
    torch.manual_seed(0)

    assert not torch.equal(velocity(model), velocity(model))
    model.eval()
    assert torch.equal(velocity(model), velocity(model))


def test_a_module_left_out_of_a_pass_still_has_gradients(case):
    model = small_model().train()
    adapter = pretend_training(adapt(model, case, module_dropout=0.999, train_norm=False))
    torch.manual_seed(0)

    velocity(model).square().mean().backward()

    gradients = [parameter.grad for parameter in adapter.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dropout", ["dropout", "rank_dropout"])
def test_dropout_of_a_lora_keeps_the_mean_of_its_change(dropout):
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(3, 2, bias=False)})
    x = torch.randn(40_000, 1, 3)
    adapter = create_adapter("lora", model, target_modules="q_proj", **{dropout: 0.3})
    pretend_training(adapter, size=1.0)

    dropped = model.train()["q_proj"](x)

    torch.testing.assert_close(
        dropped.mean((0, 1)), model.eval()["q_proj"](x).mean((0, 1)), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("norm_class", "arguments", "has_bias"),
    [
        (nn.LayerNorm, {}, True),
        (nn.LayerNorm, {"bias": False}, False),
        (nn.RMSNorm, {"eps": 1e-6}, False),
    ],
)
def test_norms_of_torch_are_adapted_with_their_biases(norm_class, arguments, has_bias, dtype):
    model = nn.ModuleDict({"norm": norm_class(6, **arguments)}).to(dtype)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = model["norm"](x)
    adapter = create_adapter("lora", model)
    start = model["norm"](x)
    pretend_training(adapter, size=0.5)

    adapted = model["norm"](x)
    adapter.merge()

    rounding = 2 * torch.finfo(dtype).eps
    assert relative_error(start, before) <= rounding
    assert relative_error(adapted, before) > 0.05
    assert relative_error(adapted, model["norm"](x)) <= rounding
    assert adapted.dtype == before.dtype
    assert ("norm.b_norm" in adapter.state_dict()) == has_bias


def test_a_change_too_small_for_a_bf16_weight_still_acts_on_the_gradient_and_the_output():
    model = nn.ModuleDict({"norm": nn.RMSNorm(256)}).to(torch.bfloat16)
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    adapter = create_adapter("lora", model)
    before = model["norm"](x)

    with torch.no_grad():
        next(adapter.parameters()).add_(1e-3)

    torch.testing.assert_close(model["norm"](x), before * 1.001, rtol=1e-5, atol=0)


def test_the_state_of_an_adapter_can_be_put_back(model, case):
    adapter = pretend_training(adapt(model, case))
    trained, state = velocity(model), {n: t.clone() for n, t in adapter.state_dict().items()}
    pretend_training(adapter, seed=2)

    adapter.load_state_dict(state)

    assert torch.equal(velocity(model), trained)


def test_the_state_of_another_adapter_is_refused_whole(model):
    adapter = create_adapter("lora", model, network_dim=4)
    other = create_adapter("lora", small_model(), network_dim=8).state_dict()
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}

    with pytest.raises(CheckpointError, match="another shape"):
        adapter.load_state_dict(other)
    with pytest.raises(CheckpointError, match="missing"):
        adapter.load_state_dict({})

    assert all(torch.equal(tensor, before[n]) for n, tensor in adapter.state_dict().items())


def test_the_groups_hold_every_tensor_once_linears_and_norms_apart(model):
    adapter = create_adapter("lora", model)

    groups = {group.name: group for group in adapter.groups()}

    assert {p.ndim for p in groups["linear"].parameters} == {2}
    assert {p.ndim for p in groups["norm"].parameters} == {1}
    assert (groups["linear"].decays, groups["norm"].decays) == (True, False)
    grouped = [id(parameter) for group in groups.values() for parameter in group.parameters]
    assert sorted(grouped) == sorted(id(parameter) for parameter in adapter.parameters())


def test_the_table_counts_every_parameter(model, case):
    adapter = adapt(model, case)

    rows = adapter.table()

    assert sum(row.parameters for row in rows) == sum(p.numel() for p in adapter.parameters())
    assert sum(row.count for row in rows) == len(adapter.deltas)
    assert ("blocks.*.mlp", case[0], 4) in {(row.modules, row.kind, row.count) for row in rows}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "lara"}, "lara.*\n.*lora, lokr"),
        ({"kind": "lora", "rank_dropuot": 0.1}, "rank_dropuot.*\n.*did you mean rank_dropout"),
        ({"kind": "lora", "lokr_factor": 8}, "no setting 'lokr_factor'"),
        ({"kind": "lora", "rank": 8}, "no setting 'rank'.*\n.*set network_dim instead"),
        ({"kind": "lokr", "alpha": 1}, "no setting 'alpha'.*\n.*set network_alpha instead"),
        ({"kind": "lora", "network_dim": 0}, "network_dim is 0"),
        ({"kind": "lora", "dropout": 1.0}, "dropout is 1.0"),
        ({"kind": "lora", "dropout": "much"}, "dropout is 'much'"),
        ({"kind": "lora", "train_norm": "perhaps"}, "train_norm is 'perhaps'"),
        ({"kind": "lokr", "lokr_factor": 0}, "lokr_factor is 0"),
        ({"kind": "lokr", "lokr_factor": 8.5}, "lokr_factor is 8.5"),
        ({"kind": "lora", "loraplus_lr_ratio": float("nan")}, "loraplus_lr_ratio is nan"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(model, arguments, words):
    with pytest.raises(ConfigError, match=words):
        create_adapter(model=model, **arguments)


def test_settings_may_be_text_as_network_args_are(model):
    as_text = {
        "lokr_factor": "4",
        "lokr_full_matrix": "True",
        "lokr_rank_dropout": "0.25",
        "train_norm": "false",
    }
    adapter = create_adapter("lokr", model, **as_text)

    delta = adapter.deltas["blocks.0.self_attn.q_proj"]
    assert {name: tuple(t.shape) for name, t in delta.trained().items()} == {
        "lokr_w1": (4, 4),
        "lokr_w2": (16, 16),
    }
    assert delta.config.rank_dropout == 0.25
    assert [group.name for group in adapter.groups()] == ["linear"]


def test_training_with_an_optimizer_moves_the_velocity_towards_its_target(model, case):
    adapter = adapt(model, case)
    optimizer = torch.optim.AdamW(list(adapter.parameters()), lr=3e-3)
    losses = []
    for _step in range(4):
        loss = (velocity(model) - GOLDEN["target"]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    assert losses == sorted(losses, reverse=True)
