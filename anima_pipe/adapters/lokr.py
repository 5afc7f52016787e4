"""LoKr: a linear layer plus a Kronecker product (LyCORIS, Yeh et al., arXiv:2309.14859).

The weight (out, in) is cut into a grid of equal blocks, (out_l, in_m) of them with (out_k, in_n)
elements each; block (i, j) changes by w1[i, j] w2. Either factor may itself be a product of two
thin matrices, w1_a w1_b or w2_a w2_b.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import torch
from torch import Tensor, nn

from anima_pipe import foreach
from anima_pipe.adapters.delta import check_shared_axis, file_alpha, linear_root, take
from anima_pipe.adapters.frozen import FrozenLinear, added_in_place
from anima_pipe.adapters.frozen_lokr import lokr_linear, thin_lokr_linear
from anima_pipe.adapters.linear import DeltaConfig, LinearDelta
from anima_pipe.adapters.low_rank import kaiming_uniform, product_norms
from anima_pipe.errors import ConfigError

FULL_MATRIX_RANK: Final = 100_000
"""A rank from here on asks for undivided factors, as LyCORIS users write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LokrConfig(DeltaConfig):
    """How the LoKr of one linear layer is made.

    dropout drops elements of the layer's input, scaling up what is left; rank_dropout drops rows
    of the change without scaling, as LyCORIS does.
    """

    lokr_factor: int = 8
    """The smaller part of each dimension, if it divides it; -1: as square as can be."""
    lokr_full_matrix: bool = False
    """Neither factor is a product of thinner ones, and alpha has no effect."""
    lokr_decompose_both: bool = False
    """The small factor too is a product of thinner ones, if the rank is low enough for it."""

    def __post_init__(self) -> None:
        # The zero-argument form of super does not know the class that slots make anew.
        DeltaConfig.__post_init__(self)
        if self.lokr_factor == 0 or self.lokr_factor < -1:
            raise ConfigError(
                f"lokr_factor is {self.lokr_factor}", "use 8, another positive number, or -1"
            )

    def start(self, base: nn.Module, generator: torch.Generator) -> LokrDelta:
        """Return a LoKr that changes nothing yet; see `DeltaConfig.create`."""
        linear = linear_root(base)
        out_l, out_k = factorize(linear.out_features, self.lokr_factor)
        in_m, in_n = factorize(linear.in_features, self.lokr_factor)
        whole = self.lokr_full_matrix or self.rank >= FULL_MATRIX_RANK
        if self.lokr_decompose_both and not whole and self.rank < max(out_l, in_m) / 2:
            first = [
                kaiming_uniform(out_l, self.rank, generator),
                kaiming_uniform(self.rank, in_m, generator),
            ]
        else:
            first = [kaiming_uniform(out_l, in_m, generator)]
        if whole or self.rank >= max(out_k, in_n) / 2:
            second = [torch.zeros(out_k, in_n)]
        else:
            second = [kaiming_uniform(out_k, self.rank, generator), torch.zeros(self.rank, in_n)]
        return LokrDelta(first, second, self)


def factorize(size: int, factor: int) -> tuple[int, int]:
    """Split a dimension in two, the smaller part first, as LyCORIS does.

    Args:
        size: The dimension.
        factor: The smaller part if it divides `size`. Else the smaller part is the largest divisor
            up to `factor` and up to the square root; -1: up to the square root alone.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    small = max(n for n in range(1, math.isqrt(size) + 1) if size % n == 0 and n <= limit)
    return small, size // small


def lokr_delta(x: Tensor, first: Tensor, second: Sequence[Tensor], scale: float | Tensor) -> Tensor:
    """Return what LoKr adds to a linear layer's output, its Kronecker product never formed.

    Args:
        x: Float[..., in_m * in_n].
        first: Float[out_l, in_m], the small factor, of any float dtype; cast to x's.
        second: Float[out_k, in_n], the large factor; or w2_a and w2_b, whose product it is.
        scale: Multiplies the change.

    Returns:
        Float[..., out_l * out_k] in x's dtype.
    """
    blocks = x.unflatten(-1, (first.shape[1], -1))
    matrices = [matrix.to(x.dtype) for matrix in reversed(second)]
    widths = [blocks.shape[-1], *(matrix.shape[0] for matrix in matrices)]
    narrowest = widths.index(min(widths))
    for matrix in matrices[:narrowest]:
        blocks = nn.functional.linear(blocks, matrix)
    # The two factors act on different axes, in any order: the small one where there is least.
    blocks = torch.einsum("oi,...in->...on", (first * scale).to(x.dtype), blocks)
    for matrix in matrices[narrowest:]:
        blocks = nn.functional.linear(blocks, matrix)
    return blocks.flatten(-2)


MERGING_TOKENS: Final = 32
"""From so many tokens per row of the small factor on, forming the sum of weight and change costs
less than multiplying by the factors; measured by bench/adapter_forms.py on a CPU."""


def merges(x: Tensor, first: Tensor) -> bool:
    """Tell whether the change is added to the weight, as a whole, rather than its output.

    Forming the sum takes as long as the weight is large, whatever the tokens; the factors take as
    long as the weight is large for as many tokens as the small factor has rows. In half precision
    the sum would lose the change to rounding, and a product of its own is never the faster.

    Args:
        x: Float[..., in].
        first: Float[out_l, in_m], the small factor.
    """
    tokens = x.numel() // x.shape[-1]
    return added_in_place(x) and tokens >= MERGING_TOKENS * min(first.shape)


class LokrDelta(LinearDelta):
    """The LoKr of one linear layer.

    Args:
        first: The small factor, Float32[out_l, in_m], alone; or w1_a and w1_b.
        second: The large factor, Float32[out_k, in_n], alone; or w2_a and w2_b.
        config: Alpha, rank and dropouts.
    """

    matrix_names: ClassVar[tuple[str, ...]] = (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b"),
        *("lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    )
    faster: ClassVar[tuple[str, ...]] = ("lokr_w1", "lokr_w1_a", "lokr_w1_b")

    config: LokrConfig

    def __init__(
        self, first: Sequence[Tensor], second: Sequence[Tensor], config: LokrConfig
    ) -> None:
        super().__init__(config)
        self.first = nn.ParameterList(first)
        self.second = nn.ParameterList(second)

    @classmethod
    def from_matrices(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the LoKr that a file's tensors describe; see `Delta.from_file`."""
        first, second = _take_factor(tensors, "lokr_w1"), _take_factor(tensors, "lokr_w2")
        # Where both factors are products, alpha is divided by the rank of the second.
        rank = next((factor[1].shape[0] for factor in (second, first) if len(factor) == 2), 1)
        alpha = file_alpha(tensors)
        if len(first) + len(second) == 2 and alpha is not None and not math.isfinite(alpha):
            # Nobody heeds it here, and a rank that asks for whole factors is infinite in fp16.
            alpha = None
        return cls(first, second, LokrConfig(rank=rank, alpha=alpha))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight: (out, in)."""
        rows = self.first[0].shape[0] * self.second[0].shape[0]
        return rows, self.first[-1].shape[1] * self.second[-1].shape[1]

    @property
    def rank(self) -> int | None:
        """The rank of the factors that are products; None if none is."""
        return self.config.rank if self._has_rank else None

    @property
    def alpha(self) -> float:
        """The alpha that a file must state; without a rank it has no effect."""
        if self._has_rank:
            return self.config.stated_alpha
        return 1.0 if self.config.alpha is None else self.config.alpha

    def matrices(self) -> dict[str, nn.Parameter]:
        """Return the matrices of both factors, by their names in a file."""
        return {
            name if len(factor) == 1 else f"{name}_{part}": matrix
            for name, factor in (("lokr_w1", self.first), ("lokr_w2", self.second))
            for part, matrix in zip("ab", factor, strict=False)
        }

    def cast_factors(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Return the small factor, and the large one as one matrix or two, in a pass's dtype."""
        count = len(self.first)
        matrices = self.cast_matrices(dtype)
        # A product is rounded as a whole, and not its factors.
        first = matrices[0] if count == 1 else product(self.first).to(dtype)
        return first, matrices[count:]

    def added(self, x: Tensor, strength: float | Tensor) -> Tensor:
        """Return what LoKr adds to the output; see `LinearDelta.added`."""
        config, scale = self.config, self.change_scale * strength
        if self.training and config.dropout:
            x = nn.functional.dropout(x, config.dropout)
        change = lokr_delta(x, *self.cast_factors(x.dtype), scale)
        if self.training and config.rank_dropout:
            rows = torch.rand(change.shape[-1], device=x.device)
            change = change * (rows >= config.rank_dropout)
        return change

    def changed(self, base: FrozenLinear, x: Tensor, strength: float | Tensor) -> Tensor | None:
        """Return the layer's output with the change; see `LinearDelta.changed`."""
        if self.training and self.config.drops:
            return None
        first, second = self.cast_factors(x.dtype)
        if isinstance(strength, Tensor):
            first, strength = first * strength, 1.0
        scale = self.change_scale * strength
        # A large factor that is a product of thin matrices is multiplied by them in turn.
        if len(second) > 1:
            return thin_lokr_linear(x, base, first, second, scale)
        return lokr_linear(x, base, first, second[0], scale, merged=merges(x, first))

    def product(self) -> Tensor:
        """Return alpha / rank * kron(w1, w2); see `LinearDelta.product`."""
        return torch.kron(product(self.first) * self.change_scale, product(self.second))

    @classmethod
    def change_norms(cls, deltas: Sequence[LinearDelta]) -> list[float]:
        """Return the norms of all changes: that of a Kronecker product is that of its factors'."""
        own = [delta for delta in deltas if isinstance(delta, cls)]
        firsts = factor_norms([[*delta.first] for delta in own])
        seconds = factor_norms([[*delta.second] for delta in own])
        return [
            first * second * abs(delta.change_scale)
            for first, second, delta in zip(firsts, seconds, own, strict=True)
        ]

    def scaled(self, strength: float) -> LokrDelta:
        """Return the same with a change so many times as large."""
        first, *others = (matrix.detach() for matrix in self.first)
        second = [matrix.detach().clone() for matrix in self.second]
        return LokrDelta([first * strength, *others], second, self.config)

    @property
    def _has_rank(self) -> bool:
        return len(self.first) + len(self.second) > 2

    @property
    def change_scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.config.scale if self._has_rank else 1.0


def product(matrices: Iterable[Tensor]) -> Tensor:
    """Return the matrix that one or more matrices make."""
    return functools.reduce(torch.matmul, matrices)


def factor_norms(factors: Sequence[Sequence[Tensor]]) -> list[float]:
    """Return the norms of factors, each one matrix or the product of two."""
    alone = [factor[0] for factor in factors if len(factor) == 1]
    read = torch.stack(foreach.norms(alone)).tolist() if alone else []
    norms = iter(read)
    products = iter(product_norms([(f[0], f[1]) for f in factors if len(f) > 1]))
    return [next(norms if len(factor) == 1 else products) for factor in factors]


def _take_factor(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """Return a factor from a file's tensors, as one matrix or as two."""
    if name in tensors:
        return [take(tensors, name, 2)]
    first, second = take(tensors, f"{name}_a", 2), take(tensors, f"{name}_b", 2)
    check_shared_axis(first, second, f"{name}_a and {name}_b")
    return [first, second]
