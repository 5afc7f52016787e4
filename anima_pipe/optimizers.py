"""Optimizers by Kohya's names: one function and one row of the table each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.optim import Optimizer

from anima_pipe.errors import ConfigError


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

    kind: str = "AdamW"
    """Kohya's name; upper and lower case are the same."""
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])
    """Keyword arguments of the optimizer's constructor, such as betas, eps, weight_decay."""


def create_optimizer(groups: Sequence[ParameterGroup], config: OptimizerConfig) -> Optimizer:
    """Build the optimizer over the groups; each group keeps its name under the key "name".

    Raises:
        ConfigError: The optimizer is unknown, or does not take one of the arguments.
    """
    build = OPTIMIZERS.get(config.kind.lower())
    if build is None:
        raise ConfigError(f"unsupported optimizer_type {config.kind!r}", "use one of AdamW")
    try:
        return build(_tables(groups), **config.arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer_args do not fit {config.kind}: {error}",
            "correct optimizer_args, for example weight_decay=0.01 betas=(0.9,0.99) eps=1e-8",
        ) from error


def _tables(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """Turn groups into torch's tables; empty groups are left out."""
    tables: list[dict[str, Any]] = []
    for group in groups:
        if not group.parameters:
            continue
        table = {"params": list(group.parameters), "lr": group.learning_rate, "name": group.name}
        tables.append(table if group.decays else {**table, "weight_decay": 0.0})
    return tables


def _adamw(groups: list[dict[str, Any]], **arguments: Any) -> Optimizer:
    on_cuda = groups[0]["params"][0].is_cuda
    return torch.optim.AdamW(groups, fused=on_cuda or None, **arguments)


OPTIMIZERS: Final[Mapping[str, Callable[..., Optimizer]]] = {"adamw": _adamw}
