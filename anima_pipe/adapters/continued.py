"""Going on from an adapter file: what it holds, under the settings of the new run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import torch
from torch import nn

from anima_pipe.adapters.adapter import Adapter, ReadArguments, read_settings
from anima_pipe.adapters.biases import train_biases
from anima_pipe.adapters.delta import Adapted, Delta, effective_weights
from anima_pipe.adapters.dora import weight_norm
from anima_pipe.adapters.files import load_adapter
from anima_pipe.adapters.inject import unwrap, wrap
from anima_pipe.adapters.linear import DeltaConfig, LinearDelta
from anima_pipe.adapters.lora import LoraDelta
from anima_pipe.adapters.pissa import PissaConfig
from anima_pipe.adapters.registry import find_kind, kind_name
from anima_pipe.adapters.rules import Rates
from anima_pipe.adapters.targets import choose_targets
from anima_pipe.adapters.tlora import TloraConfig, TloraDelta
from anima_pipe.trained import PartRate

SHOWN = 3
"""Modules that a warning names."""


def continue_adapter(
    path: str | os.PathLike[str],
    kind: str,
    model: nn.Module,
    network_dim: int = 4,
    network_alpha: float | None = 1.0,
    *,
    dim_from_weights: bool = False,
    allow_unmatched: bool = False,
    parts: Sequence[PartRate] = (),
    learning_rate: float | None = None,
    **network_args: object,
) -> tuple[Adapter, list[str]]:
    """Put the adapter of a file on a model and let it train by the settings of a new one.

    Kind, modules, ranks and alphas are the file's. Dropouts, learning rates, and T-LoRA's share of
    the ranks are the settings'. What has a learning rate of 0 stays as it is in the file.

    Args:
        path: As for `load_adapter`.
        kind: What the settings ask for; as the rest, see `create_adapter`.
        model: What it is put on.
        network_dim: What the settings ask for.
        network_alpha: What the settings ask for.
        dim_from_weights: Rank and alpha are meant to be the file's.
        allow_unmatched: As for `load_adapter`.
        parts: As for `create_adapter`.
        learning_rate: As for `create_adapter`.
        network_args: As for `create_adapter`.

    Returns:
        The adapter, and a sentence for everything in which the file differs from the settings.

    Raises:
        CheckpointError: The file does not fit the model.
        ConfigError: A setting is unknown or bad.
    """
    settings = read_settings(kind, network_dim, network_alpha, network_args)
    targets = choose_targets(model, settings.targets)
    adapter = load_adapter(path, model, allow_unmatched=allow_unmatched)
    rates = Rates(rules=settings.rates, parts=tuple(parts), run_rate=learning_rate)
    held = {place: delta.group for place, delta in adapter.deltas.items()}
    untrained = rates.untrained({**targets.groups(), **held})
    expected = find_kind(kind).delta
    warnings = [
        *_kind_warnings(adapter.deltas, kind, expected),
        *_target_warnings(adapter.deltas.keys() - untrained, targets.groups().keys() - untrained),
        *_start_warnings(adapter.deltas, settings.config),
    ]
    if not dim_from_weights:
        warnings += _rank_warnings(adapter.deltas, settings)
    if settings.targets.train_bias:
        train_biases(model, adapter.deltas)
    for place, delta in adapter.deltas.items():
        if isinstance(delta, LinearDelta):
            adapter.deltas[place] = _under_settings(model, place, delta, settings)
        adapter.deltas[place].requires_grad_(place not in untrained)
    adapter.rates = rates
    adapter.verbose = settings.table.verbose
    return adapter, warnings


def _under_settings(
    model: nn.Module, place: str, delta: LinearDelta, settings: ReadArguments
) -> LinearDelta:
    """Return a delta with what the settings decide; one of another class takes its place."""
    config = settings.config
    dropouts = {
        "dropout": config.dropout,
        "rank_dropout": config.rank_dropout,
        "module_dropout": config.module_dropout,
    }
    delta.config = replace(delta.config, **dropouts)
    if config.dora and not delta.has_dora:
        _add_dora(model, place, delta, by_row=config.wd_on_output)
    if not (isinstance(config, TloraConfig) and type(delta) is LoraDelta):
        return delta
    own = delta.config
    following = TloraDelta(
        delta.down.detach(),
        delta.up.detach(),
        replace(config, rank=own.rank, alpha=own.alpha, rs_lora=False),
    )
    following.dora_scale, following.bias = delta.dora_scale, delta.bias
    unwrap(model, place, delta)
    wrap(model, place, following)
    return following


@torch.no_grad()
def _add_dora(model: nn.Module, place: str, delta: LinearDelta, *, by_row: bool) -> None:
    """Let norms train apart from where the file's change is what it was without them."""
    base = model.get_submodule(place)
    assert isinstance(base, Adapted)
    weight = effective_weights(base.base)["weight"]
    by_row = by_row or weight.shape[0] == 1
    compared = weight if by_row else weight + delta.product()
    delta.put_dora_scale(weight_norm(compared, by_row=by_row))


def _start_warnings(deltas: Mapping[str, Delta], config: DeltaConfig) -> list[str]:
    """Return what the file's start differs in from the one asked for."""
    dora = any(delta.has_dora for delta in deltas.values()) and not config.dora
    pissa = isinstance(config, PissaConfig) and config.pissa
    return [
        *(["it has DoRA scales, which train on"] * dora),
        *(["training goes on from it, and not from the base's directions (pissa)"] * pissa),
    ]


def _kind_warnings(deltas: Mapping[str, Delta], kind: str, expected: type[Delta]) -> list[str]:
    """Return what the file's kinds differ in from the one asked for."""
    others = {
        kind_name(delta)
        for delta in deltas.values()
        if delta.group == "linear" and not issubclass(expected, type(delta))
    }
    return [f"it holds {', '.join(sorted(others))}, not {kind}, and trains as that"] * bool(others)


def _rank_warnings(deltas: Mapping[str, Delta], settings: ReadArguments) -> list[str]:
    """Return what the file's ranks and alphas differ in from those asked for."""
    config = settings.config
    sizes = {(delta.rank, delta.alpha) for delta in deltas.values()}
    own_ranks = {config.rank, *settings.ranks.values()}
    ranks = sorted({rank for rank, _alpha in sizes if rank is not None} - own_ranks)
    ranked_alphas = {alpha for rank, alpha in sizes if rank is not None and alpha is not None}
    alphas = sorted(ranked_alphas - {config.stated_alpha})
    return [
        *([f"its rank is {_some(ranks)}, not network_dim {config.rank}"] * bool(ranks)),
        *([f"its alpha is {_some(alphas)}, not {config.stated_alpha}"] * bool(alphas)),
    ]


def _target_warnings(held: AbstractSet[str], chosen: AbstractSet[str]) -> list[str]:
    """Return what the file's modules differ in from those chosen; of those that train."""
    more = sorted(held - chosen)
    fewer = sorted(chosen - held)
    return [
        *([f"it has {len(more)} modules besides: {_some(more)}; they train"] * bool(more)),
        *([f"it lacks {len(fewer)} modules: {_some(fewer)}; they do not train"] * bool(fewer)),
    ]


def _some(items: list[int] | list[float] | list[str]) -> str:
    """Return the first few of a list, for a message."""
    return ", ".join(map(str, items[:SHOWN])) + (", ..." if len(items) > SHOWN else "")
