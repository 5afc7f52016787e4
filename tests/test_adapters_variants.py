"""Variants of LoRA, and settings that differ from module to module."""

from __future__ import annotations

import pytest
import torch
from adapter_cases import KINDS, pretend_training, small_model, velocity
from golden_model import golden_weights, relative_error
from safetensors.torch import load_file, save_file
from torch import nn

from anima_pipe.adapters import create_adapter, load_adapter, save_adapter
from anima_pipe.adapters.continued import continue_adapter
from anima_pipe.adapters.low_rank import leading_factors, svd_of_product
from anima_pipe.adapters.tlora import TloraConfig, ranks_in_use
from anima_pipe.errors import ConfigError
from anima_pipe.export.comfy import apply_adapter
from anima_pipe.export.verification import verify_export
from anima_pipe.model import AnimaTransformer
from anima_pipe.model.evaluation import evaluating
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer

Q_PROJ = "blocks.0.self_attn.q_proj"


@pytest.fixture
def model() -> AnimaTransformer:
    return small_model()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dora", [False, True])
def test_pissa_starts_without_a_change_and_exports_the_difference(tmp_path, model, dora):
    before = velocity(model)
    adapter = create_adapter("lora", model, network_dim=4, network_alpha=2, pissa=True, dora=dora)
    assert torch.equal(velocity(model), before)
    pretend_training(adapter)

    path = save_adapter(adapter, tmp_path / "a.safetensors")

    assert verify_export(path, adapter.deltas) < 1e-5
    patched, loaded = small_model(), small_model()
    patched.load_state_dict(apply_adapter(load_file(path), golden_weights("a")))
    load_adapter(path, loaded)
    assert relative_error(velocity(patched), velocity(model)) < 1e-5
    assert relative_error(velocity(loaded), velocity(model)) < 1e-5
    assert relative_error(before, velocity(model)) > 1e-2


def test_pissa_starts_from_the_largest_directions_of_the_base(model):
    weight = model.get_submodule(Q_PROJ).weight.detach()
    adapter = create_adapter("lora", model, network_dim=3, network_alpha=7.0, pissa=True)

    delta = adapter.deltas[Q_PROJ]

    left, values, right = torch.linalg.svd(weight)
    best = (left[:, :3] * values[:3]) @ right[:3]
    start = delta.config.scale * delta.up @ delta.down
    assert (weight - start).norm() < 1.02 * (weight - best).norm()


def test_the_state_of_a_pissa_holds_its_start(model):
    adapter = pretend_training(create_adapter("lora", model, pissa=True))
    state = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    other = small_model()
    fresh = create_adapter("lora", other, pissa=True, seed=5)

    fresh.load_state_dict(state)

    assert torch.equal(velocity(other), velocity(model))


def test_leading_factors_of_a_matrix_of_that_rank_are_the_matrix():
    matrix = random(60, 5) @ random(5, 40, seed=1)

    up, down = leading_factors(matrix, 5, torch.Generator().manual_seed(0))

    assert relative_error(up @ down, matrix) < 1e-5
    assert up.norm().item() == pytest.approx(down.norm().item(), rel=1e-4)


@pytest.mark.parametrize("shape", [(20, 3, 30), (4, 9, 30), (30, 9, 4)])
def test_the_svd_of_a_product_is_that_of_the_matrix(shape):
    outputs, rank, inputs = shape
    up, down = random(outputs, rank), random(rank, inputs, seed=1)

    left, values, right = svd_of_product(up, down)

    torch.testing.assert_close((left * values) @ right, up @ down, atol=1e-4, rtol=1e-4)
    expected = torch.linalg.svdvals(up @ down)[: len(values)]
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "ranks"),
    [
        ({}, [16, 8, 1]),
        ({"tlora_min_rank": 4}, [16, 10, 4]),
        ({"tlora_exponent": 2.0}, [16, 4, 1]),
    ],
)
def test_the_rank_in_use_shrinks_as_sigma_grows(arguments, ranks):
    config = TloraConfig(rank=16, **arguments)

    assert ranks_in_use(torch.tensor([0.0, 0.5, 1.0]), config).tolist() == ranks


class Conditioned(nn.Module):
    """Stands where the trainer's module stands: sigmas are its second argument."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.q_proj = layer

    def forward(self, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        assert len(sigmas) == len(x)
        return self.q_proj(x)


def test_noisy_samples_train_the_first_ranks_alone_and_inference_uses_all():
    module = Conditioned(nn.Linear(6, 8, bias=False))
    adapter = create_adapter("tlora", module, network_dim=4, target_modules="q_proj")
    adapter.follow_passes(module)
    pretend_training(adapter, size=1.0)
    delta, x = adapter.deltas["q_proj"], random(2, 5, 6)
    base = x @ module.q_proj.base.weight.T

    module.train()
    trained = module(x, torch.tensor([1.0, 0.0]))
    trained[0].sum().backward()

    first = delta.config.scale * (x[0] @ delta.down[:1].T) @ delta.up[:, :1].T
    torch.testing.assert_close(trained[0], base[0] + first)
    torch.testing.assert_close(trained[1], base[1] + x[1] @ delta.product().T)
    assert not delta.down.grad[1:].any()
    torch.testing.assert_close(module.eval()(x, torch.ones(2)), base + x @ delta.product().T)


def test_a_tlora_is_saved_as_a_lora(tmp_path, model):
    adapter = pretend_training(create_adapter("tlora", model.eval(), network_dim=4))
    path = save_adapter(adapter, tmp_path / "a.safetensors")

    loaded = load_adapter(path, small_model())

    assert {row.kind for row in loaded.table()} == {"lora", "norm"}
    assert torch.equal(velocity(loaded.model), velocity(model))


def test_ranks_by_pattern_win_over_the_rank_of_all_and_zero_leaves_a_module_alone(model):
    dims = r"blocks\.0\.mlp\.layer\d{1,2}=7,.*cross_attn.*=0, .*mlp.*=2"

    adapter = create_adapter("lora", model, network_dim=4, network_reg_dims=dims)

    ranks = {path: delta.rank for path, delta in adapter.deltas.items() if delta.rank}
    assert ranks["blocks.0.mlp.layer1"] == 7
    assert ranks["blocks.1.mlp.layer1"] == 2
    assert ranks[Q_PROJ] == 4
    assert not any("cross_attn" in path for path in ranks)


def test_rates_by_pattern_and_of_lora_plus_multiply(model):
    rates = ".*self_attn.*=2e-5,.*mlp.*=1e-5"

    adapter = create_adapter("lora", model, network_reg_lrs=rates, loraplus_lr_ratio="4")

    expected = {
        "linear": 1e-3,
        "linear plus": 4e-3,
        "linear reg_lr_0": 2e-5,
        "linear reg_lr_0 plus": 8e-5,
        "linear reg_lr_1": 1e-5,
        "linear reg_lr_1 plus": 4e-5,
        "norm": 1e-3,
        "norm reg_lr_0": 2e-5,
        "norm reg_lr_1": 1e-5,
    }
    groups = {group.name: group for group in adapter.groups()}
    assert {name: g.rate(1e-3) for name, g in groups.items()} == pytest.approx(expected)
    ups = {id(delta.up) for delta in adapter.deltas.values() if delta.rank}
    plus = {id(p) for name, g in groups.items() if name.endswith(" plus") for p in g.parameters}
    assert plus == ups


def test_kohyas_ratio_of_lora_plus_for_the_transformer_wins(model):
    both = create_adapter("lora", model, loraplus_lr_ratio=4, loraplus_unet_lr_ratio=8)
    rates = {group.name: group.rate(1e-3) for group in both.groups()}
    assert rates == pytest.approx({"linear": 1e-3, "linear plus": 8e-3, "norm": 1e-3})


@pytest.mark.parametrize("dora", [False, True])
def test_decay_pulls_at_changes_alone_and_leaves_norms_and_magnitudes_where_they_are(model, dora):
    rates = ".*self_attn.*=2e-5,.*mlp.*=1e-5"
    adapter = create_adapter("lora", model, network_reg_lrs=rates, norm_lr=1e-4, use_dora=dora)
    groups = [
        ParameterGroup(
            name=group.name,
            parameters=group.parameters,
            learning_rate=group.rate(0.1),
            decays=group.decays,
        )
        for group in adapter.groups()
    ]
    trained = [
        (path, name, parameter)
        for path, delta in adapter.deltas.items()
        for name, parameter in delta.trained().items()
    ]
    for _, _, parameter in trained:
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    create_optimizer(groups, OptimizerConfig(optimizer_args={"weight_decay": 0.5})).step()
    for path, name, parameter in trained:
        pulled = bool((parameter < 1).all())
        assert pulled == name.startswith(("lora_", "down", "up")), (path, name)
        assert pulled or bool((parameter == 1).all())
    assert any("dora" in name for _, name, _ in trained) == dora


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network_reg_dims": "mlp=8"}, "'mlp' is the path of none of"),
        ({"network_reg_dims": ".*mlp.*=8.5"}, "give a whole number"),
        ({"network_reg_dims": ".*mlp.*=eight"}, "could not convert"),
        ({"network_reg_dims": ".*mlp.*=8,16"}, "no number behind '16'"),
        ({"network_reg_lrs": "(.*=1"}, "unterminated"),
        ({"loraplus_lr_ratio": -1}, "loraplus_lr_ratio is -1"),
        ({"pissa": True, "network_dim": 65}, "pissa cannot start 65 ranks"),
        ({"pissa": True, "network_alpha": -1}, "pissa cannot start with network_alpha -1"),
    ],
)
def test_a_rule_that_cannot_be_honoured_is_named(model, arguments, words):
    with pytest.raises(ConfigError, match=words):
        create_adapter("lora", model, **arguments)


def test_a_rate_for_a_module_that_does_not_train_is_refused(model):
    with pytest.raises(ConfigError, match=r"network_reg_lrs: '\.\*k_proj'"):
        create_adapter("lora", model, target_modules="q_proj", network_reg_lrs=".*k_proj=1")


@pytest.mark.parametrize(
    "arguments", [{"tlora_min_rank": 0}, {"tlora_min_rank": 5}, {"tlora_exponent": 0}, {"pissa": 1}]
)
def test_a_tlora_that_cannot_be_is_refused(model, arguments):
    with pytest.raises(ConfigError):
        create_adapter("tlora", model, network_dim=4, **arguments)


def test_norms_are_limited_in_every_linear_layer(model):
    adapter = pretend_training(create_adapter("lora", model), size=1.0)

    adapter.limit_norms(0.5)

    norms = [delta.product().norm().item() for delta in adapter.deltas.values() if delta.rank]
    assert norms == pytest.approx([0.5] * len(norms))


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_a_limit_moves_a_pissa_back_towards_its_start(model, size):
    adapter = create_adapter("lora", model, pissa=True, network_dim=3, network_alpha=2.0)
    starts = {path: tuple(delta.frozen().values()) for path, delta in linear_deltas(adapter)}
    pretend_training(adapter, size=size)
    before = {path: delta.product().detach() for path, delta in linear_deltas(adapter)}

    adapter.limit_norms(0.1)

    for path, delta in linear_deltas(adapter):
        expected = min(before[path].norm().item(), 0.1)
        assert delta.product().norm().item() == pytest.approx(expected, rel=1e-3)
        assert all(map(torch.equal, delta.frozen().values(), starts[path]))
        moved = (delta.down - starts[path][0]).norm() / delta.down.norm()
        assert moved < size * 10
    again = {path: delta.product().detach() for path, delta in linear_deltas(adapter)}
    adapter.limit_norms(0.1)
    for path, delta in linear_deltas(adapter):
        torch.testing.assert_close(delta.product(), again[path], rtol=1e-3, atol=1e-5)


def test_a_pissa_whose_factors_moved_little_acts_exactly_in_half_precision(tmp_path):
    exact, half = small_model(), small_model(torch.bfloat16)
    x = random(2, 9, 64, seed=3)
    adapters = [create_adapter("lora", m, pissa=True, network_dim=8) for m in (exact, half)]
    for adapter in adapters:
        with torch.no_grad():
            for number, parameter in enumerate(adapter.matrices()):
                noise = random(*parameter.shape, seed=number)
                parameter.add_(noise * parameter.norm() / noise.norm(), alpha=0.01)
    changes = [change_in_double(adapter, Q_PROJ) for adapter in adapters]

    path = save_adapter(adapters[0], tmp_path / "a.safetensors", dtype=torch.bfloat16)

    assert relative_error(adapters[0].deltas[Q_PROJ].product().double(), changes[0]) < 1e-5
    filed = load_adapter(path, small_model()).deltas[Q_PROJ].product()
    assert relative_error(filed.double(), changes[0]) < 0.01
    added = half.get_submodule(Q_PROJ).delta.added(x.bfloat16(), 1.0)
    assert relative_error(added.double(), x.bfloat16().double() @ changes[1].T) < 0.02


def change_in_double(adapter, path):
    """Return what a PiSSA adds to a weight, as the difference of its two products."""
    tensors = {name: tensor.double() for name, tensor in adapter.state_dict().items()}
    start, end = (
        tensors[f"{path}.{up}"] @ tensors[f"{path}.{down}"]
        for up, down in (("start_B", "start_A"), ("lora_B.weight", "lora_A.weight"))
    )
    return (end - start) * adapter.deltas[path].config.scale


def linear_deltas(adapter):
    return [(path, delta) for path, delta in adapter.deltas.items() if delta.rank]


def test_decay_does_not_pull_the_base_out_of_a_pissa(model):
    adapter = create_adapter("lora", model, pissa=True)

    assert not any(group.decays for group in adapter.groups())


@pytest.mark.parametrize("case", KINDS)
def test_going_on_from_a_file_with_its_own_settings_changes_and_warns_of_nothing(tmp_path, case):
    kind, arguments = KINDS[case]
    before = pretend_training(create_adapter(kind, small_model(), **arguments))
    path, model = save_adapter(before, tmp_path / "a.safetensors"), small_model()

    adapter, warnings = continue_adapter(path, kind, model, **arguments)

    assert torch.equal(velocity(model), velocity(before.model))
    assert [warning for warning in warnings if "lokr-full" not in case] == []
    assert adapter.state_dict().keys() == before.state_dict().keys()


def test_dropouts_and_rates_are_those_of_the_new_run(tmp_path):
    path = save_adapter(create_adapter("lora", small_model()), tmp_path / "a.safetensors")

    adapter, _warnings = continue_adapter(
        path, "lora", small_model(), dropout=0.25, rank_dropout=0.5, loraplus_lr_ratio=2
    )

    config = adapter.deltas[Q_PROJ].config
    assert (config.dropout, config.rank_dropout) == (0.25, 0.5)
    assert {group.ratio for group in adapter.groups()} == {1.0, 2.0}


def test_what_a_file_differs_in_from_the_settings_is_said(tmp_path):
    before = create_adapter("lora", small_model(), network_dim=3, network_alpha=3)
    path = save_adapter(before, tmp_path / "a.safetensors")

    _adapter, warnings = continue_adapter(
        path, "lokr", small_model(), network_dim=8, network_alpha=4, train_norm=False
    )

    assert [warning.split(";")[0].split(":")[0] for warning in warnings] == [
        "it holds lora, not lokr, and trains as that",
        "it has 24 modules besides",
        "its rank is 3, not network_dim 8",
        "its alpha is 3.0, not 4.0",
    ]


def test_the_rank_of_a_file_is_not_warned_of_where_it_is_wanted(tmp_path):
    before = create_adapter("lora", small_model(), network_dim=3, network_alpha=3)
    path = save_adapter(before, tmp_path / "a.safetensors")

    adapter, warnings = continue_adapter(path, "lora", small_model(), dim_from_weights=True)

    assert warnings == []
    assert adapter.deltas[Q_PROJ].rank == 3


def test_a_lora_file_goes_on_as_a_tlora(tmp_path):
    before = pretend_training(create_adapter("lora", small_model(), network_dim=4))
    path, model = save_adapter(before, tmp_path / "a.safetensors"), small_model().eval()

    adapter, warnings = continue_adapter(path, "tlora", model, network_dim=4, tlora_min_rank=2)

    assert warnings == []
    assert torch.equal(velocity(model), velocity(before.model))
    assert adapter.deltas[Q_PROJ].config.tlora_min_rank == 2
    adapter.remove()
    assert torch.equal(velocity(model), velocity(small_model()))


@pytest.mark.parametrize("by_row", [True, False])
def test_dora_that_is_asked_for_starts_where_the_file_ends(tmp_path, by_row):
    before = pretend_training(create_adapter("lora", small_model(), network_dim=4))
    path, model = save_adapter(before, tmp_path / "a.safetensors"), small_model()

    adapter, warnings = continue_adapter(path, "lora", model, dora=True, wd_on_output=by_row)

    assert warnings == []
    assert relative_error(velocity(model), velocity(before.model)) < 1e-5
    assert adapter.deltas[Q_PROJ].has_dora
    velocity(model).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [({"dora": True}, {}, "DoRA scales, which train on"), ({}, {"pissa": True}, "(pissa)")],
)
def test_a_start_other_than_the_one_asked_for_is_said(tmp_path, saved, asked, words):
    before = pretend_training(create_adapter("lora", small_model(), **saved))
    path, model = save_adapter(before, tmp_path / "a.safetensors"), small_model()

    _adapter, warnings = continue_adapter(path, "lora", model, **asked)

    assert [warning for warning in warnings if words in warning]
    assert torch.equal(velocity(model), velocity(before.model))


def test_a_pissa_goes_on_from_its_file_as_the_lora_that_it_is(tmp_path):
    before = pretend_training(create_adapter("lora", small_model(), network_dim=3, pissa=True))
    path, model = save_adapter(before, tmp_path / "a.safetensors"), small_model()

    adapter, warnings = continue_adapter(path, "lora", model, network_dim=3)

    assert adapter.deltas[Q_PROJ].rank == 6
    assert "its rank is 6, not network_dim 3" in warnings
    assert relative_error(velocity(model), velocity(before.model)) < 1e-5


def test_norms_train_at_a_rate_of_their_own(model):
    adapter = create_adapter("lora", model, norm_lr="2e-5", network_reg_lrs="llm_adapter.norm=1e-6")

    rates = {group.name: group.rate(1e-3) for group in adapter.groups()}

    assert rates == {"linear": 1e-3, "norm": 2e-5, "norm reg_lr_0": 1e-6}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"norm_lr": -1}, "norm_lr is -1"), ({"norm_lr": 1, "train_norm": False}, "no norm is")],
)
def test_a_rate_of_norms_that_cannot_be_is_refused(model, arguments, words):
    with pytest.raises(ConfigError, match=words):
        create_adapter("lora", model, **arguments).groups()


def test_the_table_has_a_line_for_every_module_where_it_is_verbose(model):
    adapter = create_adapter("lora", model, verbose="true")

    assert [row.modules for row in adapter.table()] == list(adapter.deltas)


def test_a_whole_difference_of_weight_and_bias_is_read_trained_and_written(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {
        "diffusion_model.mlp.0.diff": random(5, 4),
        "diffusion_model.mlp.0.diff_b": random(5, seed=1),
        "diffusion_model.norm.diff": random(4, seed=2),
    }
    save_file(tensors, path)

    def layers() -> nn.ModuleDict:
        torch.manual_seed(0)
        modules = {"mlp": nn.Sequential(nn.Linear(4, 5)), "norm": nn.LayerNorm(4)}
        return nn.ModuleDict(modules).requires_grad_(False)

    model, x = layers(), random(3, 4, seed=3)
    adapter = load_adapter(path, model, strength=0.5)
    outputs = [model["mlp"](x), model["norm"](x)]
    sum(output.sum() for output in outputs).backward()

    again = load_file(save_adapter(adapter, tmp_path / "b.safetensors"))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    weights = {name.replace("base.", ""): value for name, value in layers().named_parameters()}
    patched = layers()
    patched.load_state_dict(apply_adapter(tensors, weights, 0.5))
    for output, layer in zip(outputs, ("mlp", "norm"), strict=True):
        torch.testing.assert_close(output, patched[layer](x))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_after_a_picture_was_drawn_as_before_one(kind):
    """What is kept of a pass without gradients must not stand in the way of one with them."""
    name, settings = KINDS[kind]
    gradients: list[torch.Tensor] = []
    for draws_first in (False, True):
        model = small_model()
        adapter = pretend_training(create_adapter(name, model, **settings))
        if draws_first:
            with evaluating(model):
                velocity(model)
        velocity(model).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in adapter.parameters()]))

    assert torch.equal(*gradients)
