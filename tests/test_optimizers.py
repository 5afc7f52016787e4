"""Optimizers by Kohya's names: built, stepped, and saved at the right point."""

import importlib
import sys

import pytest
import torch
from transformers.optimization import Adafactor, AdafactorSchedule

from anima_pipe.errors import ConfigError
from anima_pipe.optimizing.optimizers import (
    OPTIMIZERS,
    OptimizerConfig,
    ParameterGroup,
    averaged_weights,
    create_optimizer,
    find_optimizer,
    learning_rates,
    load_class,
)
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule

pytestmark = pytest.mark.filterwarnings(
    # bitsandbytes pages memory on GPUs alone, and says so.
    "ignore:Paged optimizers are not supported on CPU",
    # dadaptation and came_pytorch call torch in older forms.
    "ignore::DeprecationWarning",
    "ignore:This overload of",
)

RATES = {"DAdaptSGD": 0.3, "DAdapt": 1.0, "Prodigy": 1.0, "SGD": 0.1}


def problem(rate: float, kind: str = "AdamW", **arguments: object):
    """A regression that any optimizer must get better at, with a norm that starts at its base."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(64, 64, generator=generator)
    matrix = torch.nn.Parameter(torch.zeros(64, 64))
    norm = torch.nn.Parameter(torch.zeros(64))
    optimizer = create_optimizer(
        [
            ParameterGroup(name="linear", parameters=[matrix], learning_rate=rate),
            ParameterGroup(name="norm", parameters=[norm], learning_rate=rate, decays=False),
        ],
        OptimizerConfig(optimizer_type=kind, optimizer_args=arguments),
    )

    def loss() -> torch.Tensor:
        return (matrix - wanted).square().mean() + (norm - 0.5).square().mean()

    return optimizer, loss, matrix, norm


def train(optimizer, loss, steps: int) -> None:
    for _ in range(steps):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "NAdam", "torch.optim.Adamax", "radam_schedulefree"])
def test_every_optimizer_lowers_a_loss(kind):
    rate = next((rate for start, rate in RATES.items() if kind.startswith(start)), 0.05)
    optimizer, loss, *_ = problem(rate, kind)
    before = loss().item()
    train(optimizer, loss, 60)
    with averaged_weights(optimizer), torch.no_grad():
        assert loss().item() < before


KOHYAS = {
    "AdamW": "torch.optim AdamW",
    "AdamW8bit": "bitsandbytes.optim AdamW8bit",
    "PagedAdamW": "bitsandbytes.optim PagedAdamW",
    "PagedAdamW8bit": "bitsandbytes.optim PagedAdamW8bit",
    "PagedAdamW32bit": "bitsandbytes.optim PagedAdamW32bit",
    "Lion": "lion_pytorch Lion",
    "Lion8bit": "bitsandbytes.optim Lion8bit",
    "PagedLion8bit": "bitsandbytes.optim PagedLion8bit",
    "SGDNesterov": "torch.optim SGD",
    "SGDNesterov8bit": "bitsandbytes.optim SGD8bit",
    "DAdaptation": "dadaptation.experimental DAdaptAdamPreprint",
    "DAdaptAdamPreprint": "dadaptation.experimental DAdaptAdamPreprint",
    "DAdaptAdaGrad": "dadaptation DAdaptAdaGrad",
    "DAdaptAdam": "dadaptation DAdaptAdam",
    "DAdaptAdan": "dadaptation DAdaptAdan",
    "DAdaptAdanIP": "dadaptation.experimental DAdaptAdanIP",
    "DAdaptLion": "dadaptation DAdaptLion",
    "DAdaptSGD": "dadaptation DAdaptSGD",
    "Prodigy": "prodigyopt Prodigy",
    "CAME": "came_pytorch CAME",
    "Adafactor": "transformers.optimization Adafactor",
    "RAdamScheduleFree": "schedulefree RAdamScheduleFree",
    "AdamWScheduleFree": "schedulefree AdamWScheduleFree",
    "SGDScheduleFree": "schedulefree SGDScheduleFree",
    # The seed's, a class of torch.optim, and any by its full path.
    "radam_schedulefree": "schedulefree RAdamScheduleFree",
    "RMSprop": "torch.optim RMSprop",
    "bitsandbytes.optim.AdEMAMix8bit": "bitsandbytes.optim AdEMAMix8bit",
}


@pytest.mark.parametrize(("kind", "expected"), KOHYAS.items())
def test_every_name_is_the_class_that_kohya_takes(kind: str, expected: str):
    module, name = expected.split()
    spellings = [kind] if "." in kind else [kind, kind.lower(), kind.upper()]
    for spelling in spellings:
        found = load_class(find_optimizer(spelling))
        assert found is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("kind", ["SGDNesterov", "SGDNesterov8bit"])
def test_nesterovs_momentum_is_kohyas_unless_another_is_set(kind: str):
    def momentum(**arguments: object) -> float:
        # bitsandbytes keeps a momentum as the first beta.
        defaults = problem(0.1, kind, **arguments)[0].defaults
        return defaults["betas"][0] if "betas" in defaults else defaults["momentum"]

    assert momentum() == 0.9
    assert problem(0.1, kind)[0].defaults.get("nesterov", True)
    assert momentum(momentum=0.5) == 0.5


def test_names_are_found_in_any_case():
    assert find_optimizer("adamw8BIT") == OPTIMIZERS["AdamW8bit"]
    assert find_optimizer("nadam") == find_optimizer("NAdam")
    assert find_optimizer("SGD_ScheduleFree") == OPTIMIZERS["SGDScheduleFree"]


def test_a_misspelt_optimizer_suggests_the_right_one():
    with pytest.raises(ConfigError, match="did you mean Prodigy"):
        find_optimizer("Prodgy")
    with pytest.raises(ConfigError, match="did you mean NAdam"):
        find_optimizer("nadamm")


def test_an_optimizer_whose_package_is_missing_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match="pip install prodigyopt"):
        problem(1.0, "Prodigy")


@pytest.mark.parametrize("kind", ["no_such_package.Best", "torch.optim.Best"])
def test_a_class_that_is_not_there_is_refused(kind):
    with pytest.raises(ConfigError, match="Best"):
        problem(0.1, kind)


@pytest.mark.parametrize(
    ("kind", "arguments", "wrong", "remedy"),
    [
        ("AdamW", {"beta": 0.9}, "there is no argument beta", "did you mean betas?"),
        ("AdamW", {"betas": (2.0, 0.9)}, "Invalid beta parameter at index 0: 2.0", "weight_decay"),
        ("AdamW", {"betas": 0.9}, "betas is 0.9", "give betas 2 numbers, such as (0.9,0.999)"),
        ("AdamW", {"betas": (0.9,)}, "betas is (0.9,)", "give betas 2 numbers"),
        ("AdamW", {"weight_decay": "1e-2x"}, "weight_decay is '1e-2x'", "a number, such as 0.01"),
        ("AdamW", {"weight_decay": (0, 1)}, "weight_decay is (0, 1)", "a number"),
        ("AdamW", {"amsgrad": "maybe"}, "amsgrad is 'maybe'", "true or false"),
        ("AdamW", {"betas": None}, "betas=None", "correct optimizer_args"),
        ("AdamW", {"lr": 1.0}, "lr is set by other options", "remove lr"),
        ("Prodigy", {"dcoef": 1}, "there is no argument dcoef", "did you mean d_coef?"),
        ("CAME", {"betas": (0.9, 0.99)}, "betas is (0.9, 0.99)", "3 numbers"),
    ],
)
def test_arguments_that_do_not_fit_are_named_in_our_words(kind, arguments, wrong, remedy):
    with pytest.raises(ConfigError) as caught:
        problem(1.0, kind, **arguments)
    assert caught.value.problem.startswith(f"optimizer_args do not fit {kind}: ")
    assert wrong in caught.value.problem
    assert remedy in caught.value.remedy


def test_adafactor_trains_at_the_rate_that_is_set():
    optimizer, loss, matrix, _ = problem(0.1, "Adafactor")
    train(optimizer, loss, 1)
    # Its first step is the gradient over its root mean square, times the rate.
    assert matrix.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("arguments", [{"relative_step": True}, {"warmup_init": True}])
def test_adafactor_finds_its_own_steps_where_it_is_asked_to(arguments):
    ours, loss, matrix, norm = problem(0.1, "Adafactor", **arguments)
    their_matrix = torch.nn.Parameter(torch.zeros(64, 64))
    their_norm = torch.nn.Parameter(torch.zeros(64))
    theirs = Adafactor([their_matrix, their_norm], **{"relative_step": True, **arguments})
    their_schedule = AdafactorSchedule(theirs, 0.1)
    schedule = create_schedule(ours, ScheduleConfig(), 5)
    assert learning_rates(ours) == {"linear": 0.1, "norm": 0.1}
    for _ in range(5):
        loss().backward()
        their_matrix.grad, their_norm.grad = matrix.grad.clone(), norm.grad.clone()
        ours.step()
        theirs.step()
        schedule.step()
        their_schedule.step()
        assert learning_rates(ours)["linear"] == pytest.approx(their_schedule.get_last_lr()[0])
        ours.zero_grad()
    assert torch.equal(matrix, their_matrix)
    assert torch.equal(norm, their_norm)


def test_adafactor_that_finds_its_own_steps_takes_no_rates_of_parts():
    groups = [
        ParameterGroup(
            name=str(rate),
            parameters=[torch.nn.Parameter(torch.zeros(2))],
            learning_rate=rate,
        )
        for rate in (1.0, 0.0)
    ]
    relative = OptimizerConfig(optimizer_type="Adafactor", optimizer_args={"relative_step": True})
    with pytest.raises(ConfigError, match="learning rates 0, 1"):
        create_optimizer(groups, relative)
    create_optimizer(groups, OptimizerConfig(optimizer_type="Adafactor"))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_lets_decay_pull_matrices_alone(kind):
    """A norm's change starts from nothing: its base is where decay would pull it."""
    rate = next((rate for start, rate in RATES.items() if kind.startswith(start)), 0.05)
    optimizer, *_ = problem(rate, kind, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_weight_decay_spares_the_norms():
    optimizer, loss, matrix, norm = problem(0.1, weight_decay=0.9)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.9, 0.0]
    assert loss().item() > 0
    matrix.data.fill_(1.0)
    norm.data.fill_(1.0)
    matrix.grad, norm.grad = torch.zeros_like(matrix), torch.zeros_like(norm)
    optimizer.step()
    assert (matrix < 1).all()
    assert torch.equal(norm, torch.ones(64))


@pytest.mark.parametrize("kind", ["RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree"])
def test_what_is_saved_is_the_average_and_looking_at_it_changes_nothing(kind):
    looking, loss, matrix, _ = problem(0.05, kind)
    blind, blind_loss, blind_matrix, _ = problem(0.05, kind)
    train(looking, loss, 10)
    train(blind, blind_loss, 10)
    trained = matrix.detach().clone()
    with averaged_weights(looking):
        averaged = matrix.detach().clone()
    assert not torch.equal(averaged, trained)
    assert torch.equal(matrix, trained)
    train(looking, loss, 10)
    train(blind, blind_loss, 10)
    assert torch.equal(matrix, blind_matrix)


def test_the_average_is_what_the_package_itself_evaluates_at():
    ours, loss, matrix, _ = problem(0.05, "AdamWScheduleFree")
    theirs, their_loss, their_matrix, _ = problem(0.05, "AdamWScheduleFree")
    train(ours, loss, 7)
    train(theirs, their_loss, 7)
    theirs.eval()
    with averaged_weights(ours):
        assert torch.equal(matrix, their_matrix)


def test_an_adaptive_rate_is_shown_as_it_acts():
    optimizer, loss, *_ = problem(1.0, "Prodigy")
    train(optimizer, loss, 20)
    group = optimizer.param_groups[0]
    shown = learning_rates(optimizer)
    assert shown[group["name"]] == group["lr"] * group["d"] < 1.0


def test_a_state_brings_no_kernels_of_another_device_along():
    def made(**arguments: object) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.ones(2, 2))
        group = ParameterGroup(name="linear", parameters=[weight], learning_rate=0.1)
        return create_optimizer([group], OptimizerConfig(optimizer_args=arguments))

    there, here = made(foreach=True, weight_decay=0.5), made()
    there.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    there.step()
    here.load_state_dict(there.state_dict())
    (group,) = here.param_groups
    assert (group["fused"], group["foreach"]) == (True, None)
    assert group["weight_decay"] == 0.5
    group["params"][0].grad = torch.ones(2, 2)
    here.step()
