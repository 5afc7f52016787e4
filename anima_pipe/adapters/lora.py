"""LoRA: a linear layer plus a product of two thin matrices (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import check_shared_axis, file_alpha, linear_root, take
from anima_pipe.adapters.frozen import FrozenLinear, lora_linear
from anima_pipe.adapters.linear import DeltaConfig, LinearDelta
from anima_pipe.adapters.low_rank import kaiming_uniform, product_norms
from anima_pipe.adapters.peft import MAGNITUDE


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(DeltaConfig):
    """How the LoRA of one linear layer is made.

    Of the inner activation, dropout drops elements and rank_dropout ranks, those of one sample
    together; what is left is scaled up to keep the mean, as Kohya does.
    """

    def start(self, base: nn.Module, generator: torch.Generator) -> LoraDelta:
        """Return a LoRA that changes nothing yet; see `DeltaConfig.create`."""
        linear = linear_root(base)
        down = kaiming_uniform(self.rank, linear.in_features, generator)
        return LoraDelta(down, torch.zeros(linear.out_features, self.rank), self)


def lora_delta(x: Tensor, down: Tensor, up: Tensor, scale: float | Tensor) -> Tensor:
    """Return what LoRA adds to a linear layer's output.

    Args:
        x: Float[..., in].
        down: Float[r, in], of any float dtype; cast to x's.
        up: Float[out, r], likewise.
        scale: Multiplies the inner activation: a number, or Float[..., r] that broadcasts to it.

    Returns:
        Float[..., out] in x's dtype.
    """
    inner = nn.functional.linear(x, down.to(x.dtype))
    return nn.functional.linear(inner * scale, up.to(x.dtype))


class LoraDelta(LinearDelta):
    """The LoRA of one linear layer.

    Args:
        down: Float32[r, in].
        up: Float32[out, r].
        config: Alpha and dropouts; its rank is that of the factors.
    """

    matrix_names: ClassVar[tuple[str, ...]] = ("lora_A.weight", "lora_B.weight")
    faster: ClassVar[tuple[str, ...]] = ("lora_B.weight",)
    tensor_synonyms: ClassVar[Mapping[str, str]] = {
        "lora_down.weight": "lora_A.weight",
        "lora_up.weight": "lora_B.weight",
        "lora.down.weight": "lora_A.weight",
        "lora.up.weight": "lora_B.weight",
        "lora_A.default.weight": "lora_A.weight",
        "lora_B.default.weight": "lora_B.weight",
        f"{MAGNITUDE}.weight": MAGNITUDE,
        f"{MAGNITUDE}.default": MAGNITUDE,
        f"{MAGNITUDE}.default.weight": MAGNITUDE,
    }

    def __init__(self, down: Tensor, up: Tensor, config: LoraConfig) -> None:
        super().__init__(config)
        assert down.shape[0] == up.shape[1] == config.rank
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    @classmethod
    def from_matrices(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the LoRA that a file's tensors describe; see `Delta.from_file`."""
        down, up = take(tensors, "lora_A.weight", 2), take(tensors, "lora_B.weight", 2)
        check_shared_axis(up, down, "lora_B and lora_A")
        return cls(down, up, LoraConfig(rank=down.shape[0], alpha=file_alpha(tensors)))

    @property
    def weight_shape(self) -> tuple[int, int]:
        """The shape of the weight: (out, in)."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """The number of rows of lora_A."""
        return self.config.rank

    def matrices(self) -> dict[str, nn.Parameter]:
        """Return lora_A, which is down, and lora_B, which is up."""
        return {"lora_A.weight": self.down, "lora_B.weight": self.up}

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the down and up whose product is the change over scale, as a file holds them.

        Returns:
            Float[stated_rank, in] and Float[out, stated_rank], differentiable.
        """
        return self.down, self.up

    def cast_factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the factors in the dtype of a pass; see `factors`."""
        down, up = self.cast_matrices(dtype)
        return down, up

    def added(self, x: Tensor, strength: float | Tensor) -> Tensor:
        """Return what LoRA adds to the output; see `LinearDelta.added`."""
        scale, kept = self.inner_scale(x, strength)
        return lora_delta(x, *self.cast_factors(x.dtype), scale if kept is None else scale * kept)

    def changed(self, base: FrozenLinear, x: Tensor, strength: float | Tensor) -> Tensor | None:
        """Return the layer's output and LoRA's in one pass; see `LinearDelta.changed`."""
        return lora_linear(x, base, *self.cast_factors(x.dtype), *self.inner_scale(x, strength))

    def looked_up(self, base: nn.Module, places: Tensor) -> Tensor:
        """Return the change of an embedding's rows, whose table is never formed without DoRA."""
        if self.has_dora:
            return super().looked_up(base, places)
        down, up = self.factors()
        inner = nn.functional.embedding(places, up)
        scale, kept = self.inner_scale(inner, 1.0)
        return (inner * (scale if kept is None else scale * kept)) @ down

    def product(self) -> Tensor:
        """Return alpha / rank * up @ down; see `LinearDelta.product`."""
        down, up = self.factors()
        return (up * self.config.scale) @ down

    @classmethod
    def change_norms(cls, deltas: Sequence[LinearDelta]) -> list[float]:
        """Return the norms of all changes, of which none is formed."""
        own = [delta for delta in deltas if isinstance(delta, cls)]
        norms = product_norms([(up, down) for down, up in (delta.factors() for delta in own)])
        return [n * abs(d.config.scale) for n, d in zip(norms, own, strict=True)]

    def plain_lora(self) -> tuple[Tensor, Tensor] | None:
        """Return the factors with alpha / rank folded into the second."""
        if self.has_dora:
            return None
        down, up = (factor.detach() for factor in self.factors())
        return down, up * self.config.scale

    def inner_scale(self, x: Tensor, strength: float | Tensor) -> tuple[float, Tensor | None]:
        """Return what the inner activation is multiplied by in this pass.

        Returns:
            A number, and what the dropouts leave of each rank, Float that broadcasts to [..., r];
            None: all of it.
        """
        config, kept = self.config, None
        if isinstance(strength, Tensor):
            strength, kept = 1.0, strength.to(x.dtype)
        if self.training and config.rank_dropout:
            ranks = x.new_ones(x.shape[0], *[1] * (x.ndim - 2), self.rank)
            kept = _both(kept, nn.functional.dropout(ranks, config.rank_dropout))
        if self.training and config.dropout:
            inner = x.new_ones(*x.shape[:-1], self.rank)
            kept = _both(kept, nn.functional.dropout(inner, config.dropout))
        return config.scale * strength, kept


def _both(kept: Tensor | None, more: Tensor) -> Tensor:
    return more if kept is None else kept * more
