"""A model whose own weights train, all of them or those of some parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from anima_pipe.errors import ConfigError
from anima_pipe.trained import (
    Group,
    PartRate,
    TableRow,
    dtype_name,
    part_of,
    refuse_idle_parts,
    role,
    take_state,
)

DECAYING: Final = "linear"
"""Kind of the only tensors that weight decay pulls at."""


class WholeModel:
    """A model's own weights; those of parts whose learning rate is 0 stay as they are.

    Weight decay is for the matrices of linear layers alone. Norms and biases are left to the
    gradient, as is usual; so is the table of tokens, of which most rows stand for words that the
    dataset does not have: they would only shrink.

    Args:
        model: What of it trains, and what does not, is told to it.
        parts: Those of its parts that take learning rates of their own.
        learning_rate: Of the others, of which 0 leaves them alone where something else trains;
            None: whatever it is, it is not 0.

    Raises:
        ConfigError: Nothing is left to train, or a part has no tensors.
    """

    called: ClassVar[str] = "model"
    state_file: ClassVar[str] = "model.safetensors"

    def __init__(
        self,
        model: nn.Module,
        parts: Sequence[PartRate] = (),
        learning_rate: float | None = None,
    ) -> None:
        self.model = model
        self._parts = tuple(parts)
        paths = {_module(name) for name, _ in model.named_parameters()}
        refuse_idle_parts(self._parts, paths, "give the pattern of modules that are there")
        others = learning_rate != 0 or not any(part.rate for part in self._parts)
        for name, parameter in model.named_parameters():
            part = part_of(self._parts, _module(name))
            parameter.requires_grad_(part.rate != 0 if part else others)
        if not any(True for _ in self.parameters()):
            raise ConfigError(
                "the learning rates of all parts of the model are 0: nothing is left to train",
                "raise the learning rate of a part, or leave one out for learning_rate to count",
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the trained weights are kept in."""
        return next(self.parameters()).dtype

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights that train, by their names in the model."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights that train."""
        for _name, parameter in self.named_parameters():
            yield parameter

    def groups(self) -> list[Group]:
        """Return the weights that train by learning rate and decay.

        The groups are called "linear", "norm", "bias" and "embedding", after them the name of the
        part that gave the rate.
        """
        kinds = dict(_kinds(self.model))
        groups: dict[str, Group] = {}
        for name, parameter in self.named_parameters():
            part = part_of(self._parts, _module(name))
            called = f"{kinds[name]} {part.name}" if part else kinds[name]
            group = Group(
                name=called,
                parameters=[],
                own_rate=part.rate if part else None,
                decays=kinds[name] == DECAYING,
            )
            groups.setdefault(called, group).parameters.append(parameter)
        return list(groups.values())

    def table(self, rates: Mapping[nn.Parameter, float] | None = None) -> list[TableRow]:
        """Return what is trained: siblings of one kind, and their like in all layers, make one row.

        Args:
            rates: The learning rate of each tensor that trains, to be shown beside it.
        """
        kinds = dict(_kinds(self.model))
        rows: dict[tuple[str, str], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            rows.setdefault((role(_module(name)), kinds[name]), []).append(parameter)
        return [
            TableRow(
                modules=place,
                kind=kind,
                rank=None,
                count=len(tensors),
                parameters=sum(tensor.numel() for tensor in tensors),
                rates=tuple(sorted({rates.get(t, 0.0) for t in tensors})) if rates else (),
            )
            for (place, kind), tensors in rows.items()
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights that train, sharing memory with them."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of the weights that train from a `state_dict`.

        Raises:
            CheckpointError: The names or shapes are not those of this model.
        """
        take_state(self.state_dict(), state, self.called)

    def matrices(self) -> list[nn.Parameter]:
        """Return what `full_bf16` keeps in bf16: everything that trains."""
        return [*self.parameters()]

    @torch.no_grad()
    def start_from_rounded(self, dtype: torch.dtype) -> None:
        """Round what trains to what a dtype can hold."""
        for parameter in self.parameters():
            parameter.copy_(parameter.to(dtype))

    def precision_note(self, computed_in: torch.dtype) -> str:
        """Say what the weights are kept in and computed in."""
        return f"model in {dtype_name(self.dtype)}, computed in {dtype_name(computed_in)}"


def _module(name: str) -> str:
    """Return the path of the module that a tensor is of."""
    return name.rpartition(".")[0]


def _kinds(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield every weight's name, and what kind it is of."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if isinstance(module, nn.Embedding):
                yield name, "embedding"
            elif parameter.ndim > 1:
                yield name, DECAYING
            else:
                yield name, "bias" if name.endswith(".bias") else "norm"
