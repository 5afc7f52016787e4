"""An adapter: all the deltas on one model, created, switched, listed and taken off together."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from anima_pipe.adapters.biases import train_biases
from anima_pipe.adapters.delta import Adapted, Delta, effective_weights, root_module
from anima_pipe.adapters.inject import depths, unwrap, walk, wrap
from anima_pipe.adapters.linear import DeltaConfig, LinearDelta
from anima_pipe.adapters.merge import add_changes
from anima_pipe.adapters.norm import NormDelta
from anima_pipe.adapters.registry import find_kind, kind_name
from anima_pipe.adapters.rules import (
    RankRules,
    RateRules,
    Rates,
    first_match,
    group_parameters,
    refuse_idle,
)
from anima_pipe.adapters.settings import check_names, fill
from anima_pipe.adapters.sharded import sharded_tensors
from anima_pipe.adapters.targets import TargetRules, choose_targets
from anima_pipe.errors import ConfigError
from anima_pipe.trained import Group, PartRate, TableRow, dtype_name, role, take_state


class Adapter:
    """The deltas that one call or one file put on a model.

    Several adapters may be on a model, also on the same modules: their changes add up. Parameters
    of the model keep their values and their `requires_grad`: freeze the model, and bring it to its
    dtype, before an adapter is put on it; later both would take the adapter along.

    Args:
        model: The model; its target modules are wrapped in place.
        deltas: By module path, in the model's order.
        rates: Which of its tensors take a learning rate of their own, and which do not train.
    """

    called: ClassVar[str] = "adapter"
    state_file: ClassVar[str] = "adapter.safetensors"

    def __init__(
        self, model: nn.Module, deltas: Mapping[str, Delta], rates: Rates | None = None
    ) -> None:
        self.model = model
        self.rates = rates or Rates()
        self.verbose = False
        """Whether its table has a row for every module."""
        self.deltas = dict(deltas)
        self._by_kind: dict[type[Delta], list[Adapted]] = {}
        for path, delta in self.deltas.items():
            self._by_kind.setdefault(type(delta), []).append(wrap(model, path, delta))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its matrices; of the norms, where nothing else trains."""
        return next(iter([*self.matrices(), *self.parameters()])).dtype

    @property
    def model_depths(self) -> dict[str, int]:
        """The number of layers that the model has, by path of their list."""
        return depths(self.model)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable tensors, named as in a file without prefix."""
        for path, delta in self.deltas.items():
            for name, parameter in delta.trained().items():
                yield f"{path}.{name}", parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable tensors."""
        for _name, parameter in self.named_parameters():
            yield parameter

    def groups(self) -> list[Group]:
        """Return the tensors that train by learning rate and decay; see `group_parameters`."""
        return group_parameters(self.deltas, self.rates)

    def table(self, rates: Mapping[nn.Parameter, float] | None = None) -> list[TableRow]:
        """Return what is trained: siblings, and their like in all layers, make one row.

        Args:
            rates: The learning rate of each tensor that trains, to be shown beside it.
        """
        roles: dict[tuple[str, str, int | None], list[nn.Parameter]] = {}
        counts: dict[tuple[str, str, int | None], int] = {}
        for path, delta in self.deltas.items():
            place = path if self.verbose else role(path)
            key = place, kind_name(delta), delta.rank
            roles.setdefault(key, []).extend(delta.trained().values())
            counts[key] = counts.get(key, 0) + 1
        return [
            TableRow(
                modules=key[0],
                kind=key[1],
                rank=key[2],
                count=counts[key],
                parameters=sum(tensor.numel() for tensor in tensors),
                rates=tuple(sorted({rates.get(t, 0.0) for t in tensors})) if rates else (),
            )
            for key, tensors in roles.items()
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the trainable tensors, and what they started from, sharing memory with them."""
        state = {name: parameter.detach() for name, parameter in self.named_parameters()}
        for path, delta in self.deltas.items():
            state |= {f"{path}.{name}": tensor for name, tensor in delta.frozen().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of the trainable tensors from a `state_dict`.

        Raises:
            CheckpointError: The names or shapes are not those of this adapter.
        """
        take_state(self.state_dict(), state, self.called)

    def follow_passes(self, module: nn.Module, place: int = 1) -> None:
        """Do what all layers need of a pass at its start, and tell the deltas the noise levels.

        Without it layers do their part themselves, slower, and kinds that depend on the noise
        levels cannot train.

        Args:
            module: What is called to run the model, with all of its arguments in order.
            place: Which argument the noise levels are, Float[B], from 0.
        """

        def begin(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            dtype = computed_in(self.model)
            for kind, adapted in self._by_kind.items():
                kind.begin_pass(adapted, arguments[place], dtype)

        def end(*_: object) -> None:
            if not torch.is_grad_enabled():
                for delta in self.deltas.values():
                    delta.end_pass()

        module.register_forward_pre_hook(begin)
        # Also where the pass ends in an error: what was made for it is not to outlive the weights.
        module.register_forward_hook(end, always_call=True)

    def limit_norms(self, largest: float) -> None:
        """Scale down the changes that train of linear layers whose norm is above `largest`.

        Raises:
            ConfigError: A kind cannot be scaled.
        """
        for kind in self._by_kind:
            if issubclass(kind, LinearDelta):
                of_kind = (delta for delta in self.deltas.values() if type(delta) is kind)
                kind.limit_norms([delta for delta in of_kind if _trains(delta)], largest)

    def matrices(self) -> list[nn.Parameter]:
        """Return the trainable tensors without those of norms and DoRA scales, which are small."""
        linear = (delta for delta in self.deltas.values() if isinstance(delta, LinearDelta))
        return [matrix for delta in linear for matrix in delta.matrices().values()]

    @torch.no_grad()
    def start_from_rounded(self, dtype: torch.dtype) -> None:
        """Round the matrices, and what they start from, to what a dtype can hold."""
        for delta in self.deltas.values():
            if isinstance(delta, LinearDelta):
                for tensor in (*delta.matrices().values(), *delta.frozen().values()):
                    tensor.copy_(tensor.to(dtype))

    def precision_note(self, computed_in: torch.dtype) -> str:
        """Say what the base and the adapter are kept in; see `Trained`."""
        sharded = " sharded over the processes" if sharded_tensors(self.model) else ""
        base, own = dtype_name(computed_in), dtype_name(self.dtype)
        return f"base in {base}{sharded}, adapter in {own}"

    def set_strength(self, strength: float) -> None:
        """Multiply the changes by `strength`: 1 as trained, 0 off."""
        for delta in self.deltas.values():
            delta.strength = strength

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Switch the adapter off for a while."""
        before = {path: delta.strength for path, delta in self.deltas.items()}
        self.set_strength(0)
        try:
            yield
        finally:
            for path, strength in before.items():
                self.deltas[path].strength = strength

    def remove(self) -> None:
        """Take the adapter off; the model is what it was before."""
        for path, delta in self.deltas.items():
            unwrap(self.model, path, delta)

    def merge(self) -> None:
        """Bake the changes, at the present strength, into the model's weights and take it off."""
        merge_together([self])


def _trains(delta: Delta) -> bool:
    return any(tensor.requires_grad for tensor in delta.trained().values())


def computed_in(model: nn.Module) -> torch.dtype:
    """Return the dtype that a model computes in: that of frozen weights that are not in 8 bits."""
    frozen = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    return next(frozen, torch.float32)


@torch.no_grad()
def merge_together(adapters: Sequence[Adapter]) -> None:
    """Bake adapters of one model into its weights, at their present strengths, and take them off.

    Their changes are added up in fp32, and each weight is rounded once: six small changes that are
    rounded to bf16 one after the other are lost by twice as much.

    Args:
        adapters: In the order in which they were put on.
    """
    for path in dict.fromkeys(path for adapter in adapters for path in adapter.deltas):
        changes: dict[str, Tensor] = {}
        # From the outside in: what one was put on still has those below it.
        for adapter in reversed([adapter for adapter in adapters if path in adapter.deltas]):
            delta = adapter.deltas[path]
            weights = effective_weights(unwrap(adapter.model, path, delta))
            for name, change in delta.weight_changes(weights).items():
                changes[name] = changes.get(name, torch.zeros(())) + change * delta.strength
        add_changes(root_module(adapters[0].model.get_submodule(path)), changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRules:
    """How much is said of what is trained."""

    verbose: bool = False
    """Whether every module has a row of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadArguments:
    """What an adapter is to be like, read from options."""

    config: DeltaConfig
    targets: TargetRules
    ranks: dict[str, int]
    """By pattern; see `RankRules`."""
    rates: RateRules
    table: TableRules


def read_settings(
    kind: str, network_dim: int, network_alpha: float | None, network_args: Mapping[str, object]
) -> ReadArguments:
    """Return the settings that the arguments of `create_adapter` spell.

    Raises:
        ConfigError: An unknown kind or setting, or a bad value.
    """
    if network_alpha == 0:
        raise ConfigError(
            "network_alpha is 0: whatever the adapter learns would be multiplied by 0",
            "give None for the rank, or a number above 0",
        )
    chosen = find_kind(kind)
    args = {chosen.other_names.get(name, name): value for name, value in network_args.items()}
    check_names(args, (TargetRules, RankRules, RateRules, TableRules, chosen.config), kind)
    return ReadArguments(
        config=fill(chosen.config, {**args, "rank": network_dim, "alpha": network_alpha}),
        targets=fill(TargetRules, args),
        ranks=fill(RankRules, args).ranks(),
        rates=fill(RateRules, args),
        table=fill(TableRules, args),
    )


def create_adapter(
    kind: str,
    model: nn.Module,
    network_dim: int = 4,
    network_alpha: float | None = 1.0,
    *,
    seed: int = 0,
    parts: Sequence[PartRate] = (),
    learning_rate: float | None = None,
    **network_args: object,
) -> Adapter:
    """Put a fresh adapter on a model; it changes nothing until it is trained.

    Args:
        kind: "lora", or another of `registry.KINDS`.
        model: Its parameters keep their values and `requires_grad`.
        network_dim: The rank.
        network_alpha: The change is multiplied by alpha / rank; None: alpha = rank.
        seed: Of the start; the global random state is neither used nor changed.
        parts: Parts of the model with learning rates of their own; 0 leaves one alone.
        learning_rate: Of the others; 0 leaves them alone, see `Rates`.
        network_args: Fields of `TargetRules` (train_norm, train_bias, train_llm_adapter,
            target_modules, include_patterns, exclude_patterns), of `RankRules`
            (network_reg_dims), of `RateRules` (network_reg_lrs, norm_lr, loraplus_lr_ratio),
            of `TableRules` (verbose) and of the
            kind's settings (dropout, rank_dropout, module_dropout, ...), as values or as the text
            that an option holds.

    Raises:
        ConfigError: An unknown kind or setting, a bad value, or a pattern that matches nothing.
    """
    settings = read_settings(kind, network_dim, network_alpha, network_args)
    config, ranks = settings.config, settings.ranks
    targets = choose_targets(model, settings.targets)
    refuse_idle("network_reg_dims", ranks, targets.linears)
    rates = Rates(rules=settings.rates, parts=tuple(parts), run_rate=learning_rate)
    untrained = rates.untrained(targets.groups())
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[str, Delta] = {}
    for path, module in walk(model):
        if path in untrained:
            continue
        if path in targets.linears:
            pattern = first_match(ranks, path)
            rank = config.rank if pattern is None else ranks[pattern]
            if rank:
                deltas[path] = replace(config, rank=rank).create(module, generator)
        elif path in targets.norms:
            deltas[path] = NormDelta.create(module)
    if settings.targets.train_bias:
        train_biases(model, deltas)
    adapter = Adapter(model, deltas, rates)
    adapter.verbose = settings.table.verbose
    return adapter
