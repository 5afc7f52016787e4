"""LoHa: a linear layer plus the elementwise product of two low-rank matrices (arXiv:2108.06098).

The names and the start are LyCORIS's (Yeh et al., arXiv:2309.14859).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anima_pipe.adapters.delta import check_shared_axis, file_alpha, linear_root, take
from anima_pipe.adapters.frozen import (
    FrozenLinear,
    added_in_place,
    lora_linear,
    merged_linear,
)
from anima_pipe.adapters.linear import DeltaConfig, LinearDelta
from anima_pipe.adapters.lora import lora_delta


@dataclass(frozen=True, slots=True, kw_only=True)
class LohaConfig(DeltaConfig):
    """How the LoHa of one linear layer is made.

    dropout drops elements of the layer's input, scaling up what is left; rank_dropout drops rows
    of the change without scaling, as LyCORIS does.
    """

    def start(self, base: nn.Module, generator: torch.Generator) -> LohaDelta:
        """Return a LoHa that changes nothing yet; see `DeltaConfig.create`."""
        linear = linear_root(base)
        wide = [torch.randn(self.rank, linear.in_features, generator=generator) for _ in range(2)]
        tall = torch.randn(linear.out_features, self.rank, generator=generator) / 10
        return LohaDelta([tall, wide[0], torch.zeros_like(tall), wide[1]], self)


def loha_delta(x: Tensor, factors: Sequence[Tensor], scale: float | Tensor) -> Tensor:
    """Return what LoHa adds to a linear layer's output.

    An elementwise product of ranks r is a LoRA of rank r * r; `merges` chooses between that form
    and the whole matrix.

    Args:
        x: Float[..., in].
        factors: w1_a Float[out, r], w1_b Float[r, in], w2_a and w2_b likewise.
        scale: Multiplies the change.

    Returns:
        Float[..., out] in x's dtype.
    """
    if merges(x, factors):
        return nn.functional.linear(x, (hadamard(factors) * scale).to(x.dtype))
    return lora_delta(x, *as_lora(factors), scale)


def hadamard(factors: Sequence[Tensor]) -> Tensor:
    """Return (w1_a w1_b) * (w2_a w2_b), Float[out, in]."""
    first, second, third, fourth = factors
    return (first @ second) * (third @ fourth)


def as_lora(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return down and up, Float[r * r, in] and Float[out, r * r], with the same product.

    Each pair of ranks makes one: its row is the product of their rows, its column of their columns.
    """
    first, second, third, fourth = factors
    return _PairsOfRows.apply(second, fourth), _PairsOfRows.apply(first.T, third.T).T


class _PairsOfRows(torch.autograd.Function):
    """The products of each row of one matrix with each of another, Float[r * s, n]."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        ctx.save_for_backward(one, other)
        return (one.unsqueeze(1) * other.unsqueeze(0)).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator has no types
        one, other = ctx.saved_tensors
        pairs = grad_outputs[0].unflatten(0, (len(one), len(other)))
        # A sum over the rows of the other matrix, column by column: products of matrix and vector.
        of_one = torch.bmm(pairs.permute(2, 0, 1), other.T.unsqueeze(2)).squeeze(2).T
        of_other = torch.bmm(pairs.permute(2, 1, 0), one.T.unsqueeze(2)).squeeze(2).T
        return of_one, of_other


FORMING_TOKENS: Final = 450
"""Forming the change and its gradients takes as long as multiplying so many tokens by the weight
does; measured by bench/adapter_forms.py on a CPU."""


def merges(x: Tensor, factors: Sequence[Tensor]) -> bool:
    """Tell whether the change is formed as a whole, rather than as a LoRA of rank r * r.

    Counted in products of the tokens with the weight: the LoRA takes three of r * r (in + out) /
    (in * out) each, in and out and for its gradients. The change takes one, for its gradient; and
    two more in half precision, where it is not added to the weight but multiplied by itself.

    Args:
        x: Float[..., in].
        factors: See `loha_delta`.
    """
    outputs, rank = factors[0].shape
    inputs = x.shape[-1]
    as_lora = 3 * rank * rank * (inputs + outputs) / (inputs * outputs)
    as_whole = 1 if added_in_place(x) else 3
    return x.numel() // inputs * (as_lora - as_whole) >= FORMING_TOKENS


class LohaDelta(LinearDelta):
    """The LoHa of one linear layer.

    Args:
        factors: w1_a Float32[out, r], w1_b Float32[r, in], w2_a and w2_b likewise.
        config: Alpha, rank and dropouts.
    """

    matrix_names: ClassVar[tuple[str, ...]] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    faster: ClassVar[tuple[str, ...]] = ("hada_w2_a",)

    def __init__(self, factors: Sequence[Tensor], config: LohaConfig) -> None:
        super().__init__(config)
        self.factors = nn.ParameterList(factors)

    @classmethod
    def from_matrices(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the LoHa that a file's tensors describe; see `Delta.from_file`."""
        factors = [take(tensors, name, 2) for name in cls.matrix_names]
        check_shared_axis(factors[0], factors[1], "hada_w1_a and hada_w1_b")
        check_shared_axis(factors[2], factors[3], "hada_w2_a and hada_w2_b")
        check_shared_axis(factors[0].T, factors[2], "hada_w1_a and hada_w2_a of one height")
        check_shared_axis(factors[1], factors[3].T, "hada_w1_b and hada_w2_b of one width")
        return cls(factors, LohaConfig(rank=factors[1].shape[0], alpha=file_alpha(tensors)))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight: (out, in)."""
        return self.factors[0].shape[0], self.factors[1].shape[1]

    @property
    def rank(self) -> int:
        """The number of rows of hada_w1_b."""
        return self.config.rank

    def matrices(self) -> dict[str, nn.Parameter]:
        """Return the four factors by their names in a file."""
        return dict(zip(self.matrix_names, self.factors, strict=True))

    def added(self, x: Tensor, strength: float | Tensor) -> Tensor:
        """Return what LoHa adds to the output; see `LinearDelta.added`."""
        config, scale = self.config, self.config.scale * strength
        if self.training and config.dropout:
            x = nn.functional.dropout(x, config.dropout)
        change = loha_delta(x, self._factors_for(x), scale)
        if self.training and config.rank_dropout:
            rows = torch.rand(change.shape[-1], device=x.device)
            change = change * (rows >= config.rank_dropout)
        return change

    def changed(self, base: FrozenLinear, x: Tensor, strength: float | Tensor) -> Tensor | None:
        """Return the layer's output with the change; see `LinearDelta.changed`."""
        if self.training and self.config.drops:
            return None
        factors = self._factors_for(x)
        scale = self.config.scale
        if isinstance(strength, Tensor):
            factors = [factors[0] * strength, *factors[1:]]
        else:
            scale = scale * strength
        if merges(x, factors):
            return merged_linear(x, base, lambda *parts: hadamard(parts) * scale, factors)
        return lora_linear(x, base, *as_lora(factors), scale)

    def _factors_for(self, x: Tensor) -> list[Tensor]:
        """Return the factors, in x's dtype where they make a LoRA and not a whole change."""
        exact = list(self.factors)
        return exact if merges(x, exact) else self.cast_matrices(x.dtype)

    def product(self) -> Tensor:
        """Return alpha / rank * (w1_a w1_b) * (w2_a w2_b); see `LinearDelta.product`."""
        return hadamard(list(self.factors)) * self.config.scale
