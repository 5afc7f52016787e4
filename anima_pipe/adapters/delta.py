"""What an adapter adds to one module, the wrapper that adds it, and what all kinds need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final, Self, TypeVar

import torch
from torch import Tensor, nn

from anima_pipe.adapters.frozen import FrozenLinear
from anima_pipe.errors import CheckpointError

D = TypeVar("D", bound="Delta")

SCALES: Final = frozenset({"alpha", "dora_scale"})
"""Tensors of a file that stay fp32 whatever the dtype of the others: they multiply a whole change
or a whole weight. To round the scale of a weight that training moved by a hundredth is to lose a
sixth of the movement."""


class Delta(nn.Module, ABC):
    """The trainable change of one module: its tensors, their arithmetic, their names in a file.

    A fresh delta changes nothing. Whatever the dtype of the base, the tensors are fp32, or bf16
    where a run asks for it, and are cast where they are used; the optimizer always sees fp32.
    """

    group: ClassVar[str]
    """Which learning rate and decay it takes: "linear" or "norm"."""
    own_names: ClassVar[tuple[str, ...]]
    """What tensors that no other kind has are called in a file, behind the module's path."""
    tensor_names: ClassVar[tuple[str, ...]]
    """What all of its tensors may be called there, but for alpha."""
    read_as_others: ClassVar[Mapping[str, str]] = {}
    """Those of them that are read and never written -> what becomes of them."""
    tensor_synonyms: ClassVar[Mapping[str, str]] = {}
    """What other programs call a tensor in their files -> its name in ours."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Trained matrices that weight decay would pull at the base by: what they hold is the base's
    own and no change of it."""

    bias: nn.Parameter | None
    """The change of the module's bias, Float32[out], where it changes."""

    strength: float = 1.0
    """Multiplies the change; 0 switches it off. Not part of what is saved."""

    @abstractmethod
    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return what the changed module gives for `x`, in the dtype that `base` would give.

        Args:
            base: The module underneath, perhaps adapted itself.
            x: The module's input.
        """

    @abstractmethod
    def weight_changes(self, weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return what is added to the base's parameters at strength 1.

        Args:
            weights: The base's parameters by name ("weight", "bias"), fp32.

        Returns:
            The changes by parameter name, fp32, differentiable; parameters left out keep theirs.
        """

    def parameter_change(self, name: str, parameter: Tensor) -> Tensor:
        """Return what is added to one of the base's parameters that it changes, at strength 1.

        Args:
            name: "weight" or "bias".
            parameter: The base's, fp32.
        """
        return self.weight_changes({name: parameter})[name]

    @classmethod
    @abstractmethod
    def from_file(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta that a file's tensors describe, on the CPU.

        Args:
            tensors: By our file names (`lora_A.weight`, `alpha`), any float dtype.

        Raises:
            CheckpointError: A tensor is missing, or the shapes do not go together.
        """

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that it changes, by their names in the base."""

    @property
    def rank(self) -> int | None:
        """The rank of the factors that train, where the kind has one."""
        return None

    @property
    def stated_rank(self) -> int | None:
        """The rank of what a file holds, where the kind has one."""
        return self.rank

    @property
    def alpha(self) -> float | None:
        """The alpha written beside the tensors, where the kind has one."""
        return None

    @property
    def has_dora(self) -> bool:
        """Whether the tensors have a DoRA scale among them."""
        return False

    @property
    def needs_base(self) -> bool:
        """Whether its tensors must be made anew from the base's before a file can hold them."""
        return False

    def settle(self, weights: Mapping[str, Tensor], /) -> None:
        """Take up ComfyUI's rules where its tensors follow another program's.

        Args:
            weights: The base's parameters by name, fp32, whose change stays the same.
        """

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """Return the tensors that train, by their names in a file."""

    def frozen(self) -> dict[str, Tensor]:
        """Return what does not train and yet belongs to a saved state, by name."""
        return {}

    @classmethod
    def begin_pass(cls, adapted: Sequence[Adapted], sigmas: Tensor, dtype: torch.dtype) -> None:
        """Do in one go what the deltas of a kind would each do for themselves in the next pass.

        Args:
            adapted: Modules whose delta is of this kind.
            sigmas: The noise levels of the pass's samples, Float[B].
            dtype: Of the inputs that the layers will most likely be given.
        """

    def end_pass(self) -> None:
        """Let go of what was made for the pass; weights may change from here on.

        A pass of training ends with its backward pass, another when the model has run.
        """

    def file_tensors(self) -> dict[str, Tensor]:
        """Return everything a file must hold to describe this delta, by file name."""
        tensors: dict[str, Tensor] = {name: t.detach() for name, t in self.trained().items()}
        if self.alpha is not None:
            tensors["alpha"] = torch.tensor(self.alpha, dtype=torch.float32)
        return tensors

    def change_norm(self) -> float:
        """Return the norm of what the tensors add, at strength 1 and before DoRA rescales it."""
        changes = self.weight_changes({}).values()
        return sum(change.detach().norm().item() ** 2 for change in changes) ** 0.5

    def plain_lora(self) -> tuple[Tensor, Tensor] | None:
        """Return down and up, whose product up @ down is the change at strength 1.

        Returns:
            Float32[r, in] and Float32[out, r]; None where the kind has no such form.
        """
        return None


class Adapted(nn.Module):
    """Stands where a module stood, and adds a delta to what it does."""

    def __init__(self, base: nn.Module, delta: Delta) -> None:
        super().__init__()
        self.base = base
        self.delta = delta
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the changed module's output, shape and dtype as the base's."""
        return self.delta(self.base, x)


def deltas_of(adapted: Iterable[Adapted], kind: type[D]) -> list[D]:
    """Return the deltas of modules that are known to be of a kind."""
    return [wrapper.delta for wrapper in adapted if isinstance(wrapper.delta, kind)]


def end_after_backward(made: Sequence[Tensor], deltas: Sequence[Delta]) -> None:
    """Have deltas let go of what was made for a pass as soon as its gradients are there.

    Until then checkpointed blocks, which run again, may ask for it.

    Args:
        made: By one operation, for the deltas.
        deltas: Those that hold it.
    """

    def end(*_: object) -> None:
        for delta in deltas:
            delta.end_pass()

    node = made[0].grad_fn if made else None
    if node is not None:
        node.register_hook(end)


def root_module(module: nn.Module) -> nn.Module:
    """Return the module under all wrappers."""
    while isinstance(module, Adapted):
        module = module.base
    return module


def linear_root(module: nn.Module) -> nn.Linear:
    """Return the linear layer under the wrappers."""
    root = root_module(module)
    assert isinstance(root, nn.Linear), f"a {type(root).__name__} was chosen as a linear layer"
    return root


def effective_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's own parameters with all its deltas added, fp32, differentiable."""
    if not isinstance(module, Adapted):
        own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
        if isinstance(module, FrozenLinear):
            own["weight"] = module.weight_in(torch.float32)
        return {
            name: value.to(torch.promote_types(value.dtype, torch.float32))
            for name, value in own.items()
        }
    weights = effective_weights(module.base)
    return {**weights, **changed_weights(module.delta, weights)}


def changed_weights(delta: Delta, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters that a delta changes, with the change, at its present strength."""
    return {
        name: weights[name] + change * delta.strength
        for name, change in delta.weight_changes(weights).items()
    }


def take(tensors: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    """Return a file's tensor as a trainable master, fp32 and a copy.

    Raises:
        CheckpointError: The file does not have it, or with another number of axes, no numbers or
            quantised.
    """
    if name not in tensors:
        raise CheckpointError(
            f"{name} is missing beside {', '.join(sorted(tensors))}",
            "use the whole adapter file; this one was cut or edited",
        )
    if tensors[name].ndim != axes:
        raise CheckpointError(
            f"{name} has shape {tuple(tensors[name].shape)}, not {axes} axes",
            "only adapters of linear layers and norms can be used here",
        )
    if not tensors[name].numel():
        raise CheckpointError(
            f"{name} has shape {tuple(tensors[name].shape)}, no numbers at all",
            "use the file as its trainer wrote it",
        )
    if not tensors[name].is_floating_point():
        raise CheckpointError(
            f"{name} is of dtype {tensors[name].dtype}", "use a file that is not quantised"
        )
    return tensors[name].to(torch.float32, copy=True)


def check_shared_axis(first: Tensor, second: Tensor, names: str) -> None:
    """Check that the columns of one factor are the rows of the next.

    Raises:
        CheckpointError: They are not, so that the factors have no product.
    """
    if first.shape[1] != second.shape[0]:
        raise CheckpointError(
            f"{names} with shapes {tuple(first.shape)} and {tuple(second.shape)} have no product",
            "use the file as its trainer wrote it",
        )


def file_alpha(tensors: Mapping[str, Tensor]) -> float | None:
    """Return the alpha that a file states, or None: alpha = rank.

    Raises:
        CheckpointError: It is not one number.
    """
    if "alpha" not in tensors:
        return None
    if tensors["alpha"].numel() != 1:
        raise CheckpointError(
            f"alpha has shape {tuple(tensors['alpha'].shape)}, and is to be one number",
            "use the file as its trainer wrote it",
        )
    return float(tensors["alpha"])
