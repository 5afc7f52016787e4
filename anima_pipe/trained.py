"""What a run trains: an adapter on a frozen model, or the model's own weights.

The loop's surroundings, from optimizer to saved state, know what is trained by `Trained` alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from anima_pipe.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRate:
    """A part of the model that is trained at a learning rate of its own."""

    name: str
    pattern: str
    """A regular expression that is the whole path of each module of the part, such as those of
    `model.PARTS`."""
    rate: float
    """0 leaves the part alone: of an adapter it has no tensors, or keeps those that it started
    from; of a model's own weights it keeps all."""

    def holds(self, path: str) -> bool:
        """Tell whether a module is of the part."""
        return re.fullmatch(self.pattern, path) is not None


def part_of(parts: Sequence[PartRate], path: str) -> PartRate | None:
    """Return the first part that a module is of, if any."""
    return next((part for part in parts if part.holds(path)), None)


def refuse_idle_parts(parts: Sequence[PartRate], paths: Collection[str], instead: str) -> None:
    """Check that every part that is to be trained has a module.

    Args:
        parts: With their rates.
        paths: Of the modules that are trained.
        instead: What else to do than to remove the rate.

    Raises:
        ConfigError: One has none.
    """
    for part in parts:
        if part.rate > 0 and not any(map(part.holds, paths)):
            raise ConfigError(
                f"{part.name}_lr is {part.rate:g}, but nothing of that part is trained",
                f"remove {part.name}_lr, or {instead}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that share a learning rate and a weight decay."""

    name: str
    parameters: list[nn.Parameter]
    own_rate: float | None
    """None: the run's."""
    ratio: float = 1.0
    """Multiplies the rate."""
    decays: bool
    """Whether weight decay pulls at them; what trains says which it leaves to the gradient."""

    FASTER: ClassVar[str] = " plus"
    """What stands behind the name of the tensors that LoRA+ trains faster."""

    def rate(self, run_rate: float) -> float:
        """Return the learning rate, given the run's."""
        return (run_rate if self.own_rate is None else self.own_rate) * self.ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """What is trained on modules of one role, for the user to read."""

    modules: str
    """The path of the modules' parent, with * for the numbers of layers."""
    kind: str
    rank: int | None
    count: int
    parameters: int
    rates: tuple[float, ...] = ()
    """The learning rates that were given for them."""


def role(path: str) -> str:
    """Return the path of a module's parent, with * for the numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path.rpartition(".")[0] or path)


class Trained(Protocol):
    """Tensors that train, by name: `adapters.Adapter` and `finetuning.WholeModel` are such."""

    called: ClassVar[str]
    """What messages call it."""
    state_file: ClassVar[str]
    """The file of its tensors in the folder of a saved state."""

    @property
    def model(self) -> nn.Module:
        """The model that is run."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What its tensors are kept in."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the trainable tensors by their names."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the trainable tensors."""
        ...

    def groups(self) -> list[Group]:
        """Return the tensors that train by learning rate and decay."""
        ...

    def table(self, rates: Mapping[nn.Parameter, float] | None = None) -> list[TableRow]:
        """Return what is trained, for the user to read; `rates` are those of its tensors."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that a run needs to go on from, by name, sharing memory with what trains."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the values of a `state_dict`.

        Raises:
            CheckpointError: The names or shapes are others.
        """
        ...

    def matrices(self) -> list[nn.Parameter]:
        """Return what `full_bf16` keeps in bf16."""
        ...

    def start_from_rounded(self, dtype: torch.dtype) -> None:
        """Round what `full_bf16` keeps in bf16 to what a dtype can hold."""
        ...

    def precision_note(self, computed_in: torch.dtype) -> str:
        """Say what it is kept in, and what the model is computed in."""
        ...


def take_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], called: str) -> None:
    """Copy the values of a state into tensors of the same names and shapes.

    Args:
        own: Of what trains.
        state: From the `state_dict` of such a one.
        called: What it is called.

    Raises:
        CheckpointError: The names or shapes are others.
    """
    wrong = sorted(own.keys() ^ state.keys())
    wrong += [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of the {called} are missing, unexpected or of another shape: "
            f"{', '.join(wrong[:5])}",
            "use the settings that the state was saved with",
        )
    for name, tensor in own.items():
        tensor.copy_(state[name])


def dtype_name(dtype: torch.dtype) -> str:
    """Return what messages call a dtype."""
    return str(dtype).removeprefix("torch.")
