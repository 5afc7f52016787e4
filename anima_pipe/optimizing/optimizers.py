"""Optimizers by Kohya's names, each from its own package: one row of the table each.

Rates of "adaptive" optimizers (Prodigy, D-Adaptation) multiply a step size that they find
themselves; 1.0 is right for them. Schedule-free ones average the weights instead of lowering the
rate, and hold that average only in their evaluation mode: see `averaged_weights`. Adafactor with
relative_step=True takes steps of its own size, to which learning rates say nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim import Optimizer

from anima_pipe.errors import ConfigError, did_you_mean
from anima_pipe.optimizing.arguments import check_arguments, unfit
from anima_pipe.optimizing.rounding import widened


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning rate and a weight decay."""

    name: str
    parameters: Sequence[torch.nn.Parameter]
    learning_rate: float
    decays: bool = True
    """False: no weight decay, whatever the optimizer's setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Which optimizer, and its own arguments."""

    optimizer_type: str = "AdamW"
    """Kohya's name, whose case does not matter, or package.module.Class."""
    optimizer_args: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keyword arguments of the optimizer's constructor, such as betas, eps, weight_decay."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an optimizer's class is."""

    module: str
    name: str
    package: str = "torch"
    """What pip calls the package."""
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])
    """Set unless the user says otherwise."""
    averages: bool = False
    """Schedule-free: it takes no schedule of the learning rate, and no warmup by one."""
    one_rate: bool = False
    """It finds one step size for all: groups share a learning rate, or have 0 and stand still."""

    @property
    def steps_by_tensor(self) -> bool:
        """Whether a step looks at each tensor by itself, and counts for each how many it was."""
        return not (self.averages or self.one_rate)


FUSED: Final = ("Adam", "AdamW", "SGD")
"""Those of torch.optim that step all tensors with one operation, if asked."""
FUSED_ON: Final = ("cuda", "cpu")
"""Types of devices for which they have it."""

_FIXED_RATE: Final = {"relative_step": False, "scale_parameter": False}
_NESTEROV: Final = {"momentum": 0.9, "nesterov": True}


def _bitsandbytes(name: str, **arguments: object) -> Source:
    return Source("bitsandbytes.optim", name, "bitsandbytes", arguments)


def _schedule_free(name: str) -> Source:
    return Source("schedulefree", name, "schedulefree", averages=True)


def _dadaptation(name: str, module: str = "dadaptation") -> Source:
    return Source(module, name, "dadaptation", one_rate=True)


OPTIMIZERS: Final[Mapping[str, Source]] = {
    "AdamW": Source("torch.optim", "AdamW"),
    "AdamW8bit": _bitsandbytes("AdamW8bit"),
    "PagedAdamW": _bitsandbytes("PagedAdamW"),
    "PagedAdamW8bit": _bitsandbytes("PagedAdamW8bit"),
    "PagedAdamW32bit": _bitsandbytes("PagedAdamW32bit"),
    "Lion": Source("lion_pytorch", "Lion", "lion-pytorch"),
    "Lion8bit": _bitsandbytes("Lion8bit"),
    "PagedLion8bit": _bitsandbytes("PagedLion8bit"),
    "SGDNesterov": Source("torch.optim", "SGD", arguments=_NESTEROV),
    "SGDNesterov8bit": _bitsandbytes("SGD8bit", **_NESTEROV),
    "DAdaptation": _dadaptation("DAdaptAdamPreprint", "dadaptation.experimental"),
    "DAdaptAdamPreprint": _dadaptation("DAdaptAdamPreprint", "dadaptation.experimental"),
    "DAdaptAdam": _dadaptation("DAdaptAdam"),
    "DAdaptAdaGrad": _dadaptation("DAdaptAdaGrad"),
    "DAdaptAdan": _dadaptation("DAdaptAdan"),
    "DAdaptAdanIP": _dadaptation("DAdaptAdanIP", "dadaptation.experimental"),
    "DAdaptLion": _dadaptation("DAdaptLion"),
    "DAdaptSGD": _dadaptation("DAdaptSGD"),
    "Prodigy": Source("prodigyopt", "Prodigy", "prodigyopt", one_rate=True),
    "CAME": Source("came_pytorch", "CAME", "came-pytorch"),
    "Adafactor": Source("transformers.optimization", "Adafactor", "transformers", _FIXED_RATE),
    "RAdamScheduleFree": _schedule_free("RAdamScheduleFree"),
    "AdamWScheduleFree": _schedule_free("AdamWScheduleFree"),
    "SGDScheduleFree": _schedule_free("SGDScheduleFree"),
}
"""Kohya's names."""

_SEEDS: Final = {
    f"{name}_schedulefree": OPTIMIZERS[f"{kind}ScheduleFree"]
    for name, kind in (("radam", "RAdam"), ("adamw", "AdamW"), ("sgd", "SGD"))
}
"""The seed's spellings."""

_BY_LOWER_CASE: Final = {
    **{name.lower(): source for name, source in OPTIMIZERS.items()},
    **_SEEDS,
}


KERNELS: Final = ("fused", "foreach")
"""What of an optimizer's arguments says how it computes, not what."""

_OF_TORCH: Final = {
    name.lower(): name
    for name, found in vars(torch.optim).items()
    if isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer
}


def find_optimizer(kind: str) -> Source:
    """Return where an optimizer is.

    Args:
        kind: One of Kohya's names or the name of a class in torch.optim, either in any case, or
            package.module.Class.

    Raises:
        ConfigError: There is no optimizer of that name.
    """
    if (source := _BY_LOWER_CASE.get(kind.lower())) is not None:
        return source
    if (name := _OF_TORCH.get(kind.lower())) is not None:
        return Source("torch.optim", name)
    module, _, name = kind.rpartition(".")
    if module:
        return Source(module, name, module.partition(".")[0])
    hint = did_you_mean(kind, [*_OF_TORCH.values(), *_SEEDS, *OPTIMIZERS])
    raise ConfigError(
        f"unknown optimizer_type {kind!r}",
        f"{hint}use one of {', '.join(OPTIMIZERS)}, or package.module.Class of one installed",
    )


def steps_by_tensor(config: OptimizerConfig) -> bool:
    """Tell whether a step of an optimizer may be taken a few tensors at a time."""
    source = find_optimizer(config.optimizer_type)
    return source in OPTIMIZERS.values() and source.steps_by_tensor


def load_class(source: Source) -> type[Optimizer]:
    """Import an optimizer's class.

    Raises:
        ConfigError: Its package is not installed, or has no such class.
    """
    try:
        found = getattr(importlib.import_module(source.module), source.name)
    except ImportError as error:
        raise ConfigError(
            f"optimizer {source.name} is in the package {source.package}, which is not there: "
            f"{error}",
            f"run `pip install {source.package}` in this environment, or use AdamW",
        ) from error
    except AttributeError as error:
        raise ConfigError(
            f"{source.module} has no optimizer {source.name}", "correct optimizer_type"
        ) from error
    return found


def all_arguments(config: OptimizerConfig) -> dict[str, object]:
    """Return the arguments of the optimizer's constructor, set by the user or for them."""
    if sizes_own_steps(config):
        return {**config.optimizer_args, "relative_step": True}
    return {**find_optimizer(config.optimizer_type).arguments, **config.optimizer_args}


def sizes_own_steps(config: OptimizerConfig) -> bool:
    """Tell whether it is Adafactor by its relative steps, which warmup_init asks for too."""
    is_adafactor = find_optimizer(config.optimizer_type).package == "transformers"
    return is_adafactor and any(map(config.optimizer_args.get, ("relative_step", "warmup_init")))


def create_optimizer(groups: Sequence[ParameterGroup], config: OptimizerConfig) -> Optimizer:
    """Build the optimizer over the groups; each group keeps its name under the key "name".

    Raises:
        ConfigError: The optimizer is unknown or not installed, or does not take an argument.
    """
    source = find_optimizer(config.optimizer_type)
    # Their constructors have little in common beyond torch's groups and lr.
    build: Any = load_class(source)
    arguments = all_arguments(config)
    own_steps = sizes_own_steps(config)
    _refuse_several_rates(
        groups, config.optimizer_type, one_size=own_steps, one_rate=source.one_rate
    )
    problem = f"optimizer_args do not fit {config.optimizer_type}"
    check_arguments(problem, build, arguments, ours=("params", "lr"))
    if _has_fused_form(source, groups) and not arguments.keys() & {"fused", "foreach"}:
        arguments["fused"] = True
    try:
        rate = None if own_steps else groups[0].learning_rate
        optimizer = build(_tables(groups), lr=rate, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            unfit(problem, arguments, error),
            "correct optimizer_args, for example weight_decay=0.01 betas=(0.9,0.99) eps=1e-8",
        ) from error
    if source.averages:
        optimizer.train()
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    return optimizer


def _with_own_kernels(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose groups step by the kernels that an optimizer was made with.

    Which these are goes by the device, and a state may be of another one.
    """
    groups = [
        {**theirs, **{name: own[name] for name in KERNELS if name in own}}
        for theirs, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def _refuse_several_rates(
    groups: Sequence[ParameterGroup], kind: str, *, one_size: bool, one_rate: bool
) -> None:
    """Such optimizers notice it themselves only at the first step, or never.

    Args:
        groups: With their rates.
        kind: The optimizer's name.
        one_size: No rate is looked at: a group of rate 0 would be trained too.
        one_rate: Groups of rate 0 stand still, the others share a rate.
    """
    rates = sorted({group.learning_rate for group in groups if group.learning_rate or one_size})
    if (one_size or one_rate) and len(rates) > 1:
        zero = "" if one_size else ", or 0 to leave it untrained"
        raise ConfigError(
            f"{kind} finds one step size for all, but there are learning rates "
            f"{', '.join(f'{rate:g}' for rate in rates)}",
            f"give every part the same rate{zero}; leave LoRA+ out",
        )


def _has_fused_form(source: Source, groups: Sequence[ParameterGroup]) -> bool:
    """Tell whether torch steps all these tensors with one operation, if asked."""
    places = {parameter.device.type for group in groups for parameter in group.parameters}
    return places <= {*FUSED_ON} and source.module == "torch.optim" and source.name in FUSED


@contextmanager
def averaged_weights(optimizer: Optimizer) -> Generator[None]:
    """Put the weights in place that a schedule-free optimizer would have saved.

    In training such an optimizer works at another point than the average that it is run for.
    Other optimizers have one set of weights, and nothing happens.
    """
    evaluate, train = (getattr(optimizer, mode, None) for mode in ("eval", "train"))
    if evaluate is None or train is None:
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Switching there and back rounds: the copies make the run the same with and without it.
    trained = [parameter.detach().clone() for parameter in parameters]
    with widened(parameters):
        evaluate()
        try:
            yield
        finally:
            train()
            for parameter, values in zip(parameters, trained, strict=True):
                parameter.data.copy_(values)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the rate of each group's next step; adaptive optimizers multiply it by their d."""
    groups = optimizer.param_groups
    return {group["name"]: float(group["lr"]) * float(group.get("d", 1.0)) for group in groups}


def _tables(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Turn groups into torch's tables; empty groups are left out."""
    tables: list[dict[str, Any]] = []
    for group in groups:
        if not group.parameters:
            continue
        table = {"params": list(group.parameters), "lr": group.learning_rate, "name": group.name}
        tables.append(table if group.decays else {**table, "weight_decay": 0.0})
    return tables
