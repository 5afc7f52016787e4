"""What the kinds for linear layers share: their settings, DoRA, and the limit of their norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from anima_pipe import foreach
from anima_pipe.adapters.delta import (
    Adapted,
    Delta,
    deltas_of,
    effective_weights,
    take,
)
from anima_pipe.adapters.dora import (
    check_dora_scale,
    comfyui_scale,
    dora_gain,
    weight_norm,
)
from anima_pipe.adapters.frozen import FrozenLinear, frozen_linear
from anima_pipe.adapters.linear_passes import (
    RowNorms,
    copies_together,
    gains_together,
    with_rescaled_weight,
)
from anima_pipe.adapters.peft import MAGNITUDE
from anima_pipe.errors import ConfigError

OTHER_NAMES = {
    "use_rslora": "rs_lora",
    "use_dora": "dora",
    "dora_wd": "dora",
    "weight_decompose": "dora",
    "wd_on_out": "wd_on_output",
}
"""What PEFT and LyCORIS call a setting -> what it is called here, which is LyCORIS's too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaConfig(ABC):
    """How the delta of one linear layer is made; field names as users give them."""

    rank: int = 4
    alpha: float | None = None
    """The change is multiplied by alpha / rank; None: alpha = rank."""
    rs_lora: bool = False
    """The change is multiplied by alpha / sqrt(rank) instead (Kalajdzievski, arXiv:2312.03732)."""
    dropout: float = 0.0
    """Chance that an element is dropped, in [0, 1); of which activation, the kind says."""
    rank_dropout: float = 0.0
    """Chance that a rank or an output row is dropped, in [0, 1); the kind says which."""
    module_dropout: float = 0.0
    """Chance that the whole change is left out of a forward pass, in [0, 1)."""
    dora: bool = False
    """Whether the norms of the weight's rows or columns train apart; see `dora`."""
    wd_on_output: bool = True
    """For DoRA: a norm per row of the weight, that is per output; else one per column."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"network_dim is {self.rank}", "use 1 or more; 8 to 64 is usual")
        for name in ("dropout", "rank_dropout", "module_dropout"):
            chance: float = getattr(self, name)
            if not 0 <= chance < 1:
                raise ConfigError(f"{name} is {chance}", "use a chance from 0 up to below 1")

    @property
    def drops(self) -> bool:
        """Whether elements, ranks or rows are dropped in training."""
        return self.dropout > 0 or self.rank_dropout > 0

    @property
    def stated_alpha(self) -> float:
        """What a file states as alpha: every program multiplies by it / rank."""
        alpha = float(self.rank) if self.alpha is None else self.alpha
        return alpha * math.sqrt(self.rank) if self.rs_lora else alpha

    @property
    def scale(self) -> float:
        """What the change made of the tensors is multiplied by."""
        return self.stated_alpha / self.rank

    def create(self, base: nn.Module, generator: torch.Generator) -> LinearDelta:
        """Return a delta that changes nothing yet.

        Args:
            base: A linear layer, perhaps adapted already.
            generator: On the CPU, so that every device starts from the same numbers.
        """
        delta = self.start(base, generator)
        if self.dora:
            weight = effective_weights(base)["weight"].detach()
            # Of a single row, ComfyUI takes every scale for one of rows.
            by_row = self.wd_on_output or weight.shape[0] == 1
            delta.put_dora_scale(weight_norm(weight, by_row=by_row))
        return delta

    @abstractmethod
    def start(self, base: nn.Module, generator: torch.Generator) -> LinearDelta:
        """Return the kind's own delta, as `create`."""


class LinearDelta(Delta):
    """The change of a linear layer's weight, made of matrices, perhaps rescaled by DoRA.

    Args:
        config: Its settings; the rank is that of the matrices.
    """

    group: ClassVar[str] = "linear"
    matrix_names: ClassVar[tuple[str, ...]]
    """What the matrices may be called in a file."""
    faster: ClassVar[tuple[str, ...]]
    """The matrices that LoRA+ trains at a higher rate."""

    undecayed: ClassVar[tuple[str, ...]] = ("dora_scale",)

    dora_scale: nn.Parameter | None

    follows_peft: bool = False
    """Whether dora_scale goes with the norms of the changed weight's rows; see `settle`."""
    casts_alone: ClassVar[bool] = False
    """Whether what a pass multiplies by is not simply its matrices in the dtype of the pass."""

    copies: tuple[Tensor, ...] = ()
    """The matrices in the dtype of the pass that is running, made for all layers at once; empty:
    there are none, and each layer casts its own."""
    gain_copy: Tensor | None = None
    """The same of DoRA's gain less one, Float[out]."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.own_names = cls.matrix_names
        cls.tensor_names = (*cls.matrix_names, "dora_scale", MAGNITUDE, "diff_b")
        cls.read_as_others = {MAGNITUDE: "dora_scale"}

    def __init__(self, config: DeltaConfig) -> None:
        super().__init__()
        self.config = config
        self.row_norms = RowNorms()
        self.register_parameter("dora_scale", None)
        self.register_parameter("bias", None)

    @classmethod
    def from_file(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta that a file's tensors describe; see `Delta.from_file`."""
        delta = cls.from_matrices(tensors)
        if MAGNITUDE in tensors:
            tensors = {**tensors, "dora_scale": tensors[MAGNITUDE].unsqueeze(-1)}
            delta.follows_peft = True
        if "dora_scale" in tensors:
            scale = take(tensors, "dora_scale", 2)
            check_dora_scale(scale, delta.weight_shape)
            delta.put_dora_scale(scale)
        if "diff_b" in tensors:
            delta.bias = nn.Parameter(take(tensors, "diff_b", 1))
        return delta

    @classmethod
    @abstractmethod
    def from_matrices(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the delta without its DoRA scale, as `from_file`."""

    @abstractmethod
    def matrices(self) -> dict[str, nn.Parameter]:
        """Return the matrices by their names in a file; the change is linear in each of them."""

    @classmethod
    def begin_pass(cls, adapted: Sequence[Adapted], sigmas: Tensor, dtype: torch.dtype) -> None:
        """Cast the matrices of all layers at once; see `Delta.begin_pass`."""
        del sigmas
        deltas = deltas_of(adapted, cls)
        if not cls.casts_alone:
            copies_together(deltas, dtype)
        gains_together(adapted, deltas, dtype)

    def end_pass(self) -> None:
        """Let go of the pass's copies; see `Delta.end_pass`."""
        self.copies = ()
        self.gain_copy = None

    def cast_matrices(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the matrices in a dtype, in their order, differentiable."""
        if self.copies and all(copy.dtype == dtype for copy in self.copies):
            return [*self.copies]
        return [matrix.to(dtype) for matrix in self.matrices().values()]

    @abstractmethod
    def added(self, x: Tensor, strength: float | Tensor) -> Tensor:
        """Return what the matrices add to the layer's output, with this pass's dropouts.

        Args:
            x: The layer's input, Float[..., in].
            strength: Multiplies the result: a number, or Float[] on x's device.

        Returns:
            Float[..., out] in x's dtype.
        """

    def changed(self, base: FrozenLinear, x: Tensor, strength: float | Tensor) -> Tensor | None:
        """Return the output of a frozen layer with what the matrices add, in one pass.

        Args:
            base: The layer.
            x: As for `added`, with the same dropouts.
            strength: Multiplies the change, as in `added`.

        Returns:
            Float[..., out] in x's dtype; None where there is no such pass: use `added`.
        """
        del base, x, strength

    @abstractmethod
    def product(self) -> Tensor:
        """Return the change that the matrices make, Float32[out, in], differentiable."""

    @property
    @abstractmethod
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight: (out, in)."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weight and, if it changes, the bias."""
        bias = {} if self.bias is None else {"bias": tuple(self.bias.shape)}
        return {"weight": self.weight_shape, **bias}

    @property
    def alpha(self) -> float:
        """The alpha that a file must state for the change to come out as trained."""
        return self.config.stated_alpha

    @property
    def has_dora(self) -> bool:
        """Whether norms train apart."""
        return self.dora_scale is not None

    def put_dora_scale(self, scale: Tensor) -> None:
        """Let norms train apart, from these on: Float32[out, 1] or Float32[1, in]."""
        self.dora_scale = nn.Parameter(scale)

    @property
    def needs_base(self) -> bool:
        """Whether its DoRA scale is PEFT's, which no file for ComfyUI can hold as it is."""
        return self.follows_peft

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor], /) -> None:
        """Make ComfyUI's DoRA scale of PEFT's; see `Delta.settle`."""
        weight = weights.get("weight")
        if self.follows_peft and self.dora_scale is not None and weight is not None:
            scale = self.dora_scale.to(weight.device)
            self.dora_scale.copy_(comfyui_scale(weight, self.product().to(weight.device), scale))
            self.follows_peft = False

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the matrices, and DoRA's scale and the bias's change, by their names in a file."""
        others = {"dora_scale": self.dora_scale, "diff_b": self.bias}
        return {**self.matrices(), **{name: t for name, t in others.items() if t is not None}}

    def weight_changes(self, weights: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Return the changes of weight and bias; see `Delta.weight_changes`.

        Args:
            weights: The base's; the weight is asked for by DoRA alone.
        """
        change = self.product()
        if self.dora_scale is not None:
            weight, rule = weights["weight"], self.follows_peft
            moved = weight + change
            change = moved * dora_gain(weight, change, self.dora_scale, of_changed=rule) - weight
        return {"weight": change} if self.bias is None else {"weight": change, "bias": self.bias}

    def parameter_change(self, name: str, parameter: Tensor) -> Tensor:
        """Return the change of the weight or of the bias; see `Delta.parameter_change`."""
        if name == "bias" and self.bias is not None:
            return self.bias
        return super().parameter_change(name, parameter)

    def forward(self, base: nn.Module, x: Tensor) -> Tensor:
        """Return the base's output plus the change; see `Delta.forward`."""
        if self.strength == 0:
            return base(x)
        strength = self._strength_now(x)
        output = self._with_weight(base, x, strength)
        return output if self.bias is None else output + (strength * self.bias).to(output.dtype)

    def _with_weight(self, base: nn.Module, x: Tensor, strength: float | Tensor) -> Tensor:
        """Return the base's output with the change of its weight at a strength."""
        if not x.is_floating_point():
            rows = base(x)
            return rows + strength * self.looked_up(base, x).to(rows.dtype)
        if self.dora_scale is None:
            frozen = frozen_linear(base)
            output = None if frozen is None else self.changed(frozen, x, strength)
            return base(x) + self.added(x, strength) if output is None else output
        return with_rescaled_weight(self, self.dora_scale, base, x, strength)

    def looked_up(self, base: nn.Module, places: Tensor) -> Tensor:
        """Return the change of an embedding's rows; dropouts of activations have none to act on.

        Args:
            base: The embedding, perhaps adapted already; its table is the weight.
            places: Int[...], the rows asked for.

        Returns:
            Float32[..., in].
        """
        weights = effective_weights(base) if self.has_dora else {}
        return nn.functional.embedding(places, self.weight_changes(weights)["weight"])

    def _strength_now(self, x: Tensor) -> float | Tensor:
        """Return the strength of this pass, which module_dropout draws: all of it, or zero.

        The change is multiplied by zero rather than left out: a tensor that a pass leaves out
        altogether would stop data-parallel training, which waits for its gradient. The host does
        not learn what was drawn, and so need not wait for the device.
        """
        chance = self.config.module_dropout if self.training else 0.0
        if not chance:
            return self.strength
        return self.strength * (torch.rand((), device=x.device) >= chance)

    def change_norm(self) -> float:
        """Return the norm of the matrices' product; see `Delta.change_norm`."""
        return self.product().detach().norm().item()

    @classmethod
    @torch.no_grad()
    def limit_norms(cls, deltas: Sequence[LinearDelta], largest: float) -> None:
        """Scale matrices down, those of a change by one factor, until it has this norm at most.

        Args:
            deltas: Of this kind.
            largest: The norm of a change; see `change_norm`.
        """
        matrices: list[Tensor] = []
        factors: list[float] = []
        for delta, norm in zip(deltas, cls.change_norms(deltas), strict=True):
            own = [*delta.matrices().values()] if norm > largest else []
            matrices += own
            factors += [(largest / norm) ** (1 / len(own)) for _ in own]
        if matrices:
            foreach.multiply_(matrices, factors)

    @classmethod
    def change_norms(cls, deltas: Sequence[LinearDelta]) -> list[float]:
        """Return the norms of all changes, which the host reads at once; see `change_norm`."""
        return torch.stack([delta.product().norm() for delta in deltas]).tolist()
