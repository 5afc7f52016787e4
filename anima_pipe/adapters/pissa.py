"""PiSSA: a LoRA that starts from the base's largest directions (Meng et al., arXiv:2404.02948).

The paper takes the start out of the base. Here the base stays as it is, in its dtype, and the start
is taken out of the change: what trains is the same, and what is exported is a difference from the
base as it was published, a LoRA of twice the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import effective_weights
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.adapters.lora import LoraConfig, LoraDelta
from anima_pipe.adapters.low_rank import leading_factors
from anima_pipe.errors import ConfigError

HALVINGS: Final = 40
"""Of the interval in which a share is searched; the last is below fp32's steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PissaConfig(LoraConfig):
    """How the LoRA of one linear layer is made, at choice from the base; else as `LoraConfig`."""

    pissa: bool = False
    """Whether it starts from the base's largest singular directions."""

    def start(self, base: nn.Module, generator: torch.Generator) -> LoraDelta:
        """Return a LoRA that changes nothing yet; see `DeltaConfig.create`."""
        if self.pissa:
            return start_pissa(base, self, generator)
        # The zero-argument form of super does not know the class that slots make anew.
        return LoraConfig.start(self, base, generator)


def start_pissa(base: nn.Module, config: LoraConfig, generator: torch.Generator) -> PissaDelta:
    """Return a delta that starts from the leading directions of a linear layer's weight."""
    weight = effective_weights(base)["weight"].detach()
    rank = config.rank
    if rank > min(weight.shape):
        raise ConfigError(
            f"pissa cannot start {rank} ranks from a weight of shape {tuple(weight.shape)}",
            f"set network_dim to {min(weight.shape)} or less",
        )
    if config.scale <= 0:
        raise ConfigError(
            f"pissa cannot start with network_alpha {config.alpha}: the base's part has no factors "
            "of a negative scale",
            "set network_alpha above 0",
        )
    up, down = leading_factors(weight, rank, generator)
    # The product is to be the base's part after it was scaled.
    return PissaDelta(down / config.scale**0.5, up / config.scale**0.5, config)


class PissaDelta(LoraDelta):
    """What a LoRA has moved away from its start, which stays part of it.

    With A and B as they are, A0 and B0 as they started, the change is B A - B0 A0. Taken as the
    difference of two products it would be a small number between two large ones, lost in half
    precision. So it is B (A - A0) + (B - B0) A0: one LoRA of twice the rank, with
    down = [A - A0; A0] and up = [B, B - B0], whose product is zero to the bit at the start.

    Args:
        down: A0, the start, Float32[r, in].
        up: B0, the start, Float32[out, r].
        config: As of a LoRA; its rank is that of A and B.
    """

    undecayed: ClassVar[tuple[str, ...]] = (*LoraDelta.undecayed, *LoraDelta.matrix_names)
    # What it multiplies by are differences, which are to be rounded and not what they are of.
    casts_alone: ClassVar[bool] = True

    start_down: Tensor
    start_up: Tensor

    def __init__(self, down: Tensor, up: Tensor, config: LoraConfig) -> None:
        super().__init__(down.clone(), up.clone(), config)
        self.register_buffer("start_down", down)
        self.register_buffer("start_up", up)

    @property
    def stated_rank(self) -> int:
        """Twice the rank of A and B."""
        return 2 * self.config.rank

    @property
    def alpha(self) -> float:
        """The alpha that goes with that rank."""
        return 2 * self.config.stated_alpha

    def frozen(self) -> dict[str, Tensor]:
        """Return the start; see `Delta.frozen`."""
        return {"start_A": self.start_down, "start_B": self.start_up}

    def moved(self) -> tuple[Tensor, Tensor]:
        """Return A - A0 and B - B0, fp32 whatever A and B are."""
        return self.down.float() - self.start_down, self.up.float() - self.start_up

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return [A - A0; A0] and [B, B - B0], fp32; see `LoraDelta.factors`."""
        moved_down, moved_up = self.moved()
        down = torch.cat([moved_down, self.start_down])
        return down, torch.cat([self.up.float(), moved_up], dim=1)

    def cast_factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the factors in the dtype of a pass; see `LoraDelta.cast_factors`."""
        down, up = self.factors()
        return down.to(dtype), up.to(dtype)

    def inner_scale(self, x: Tensor, strength: float | Tensor) -> tuple[float, Tensor | None]:
        """Return LoRA's factors of the inner activation, a rank's for both of its parts."""
        scale, kept = super().inner_scale(x, strength)
        if kept is None or kept.ndim == 0:
            return scale, kept
        return scale, torch.cat([kept, kept], dim=-1)

    @classmethod
    @torch.no_grad()
    def limit_norms(cls, deltas: Sequence[LinearDelta], largest: float) -> None:
        """Move each A and B back towards their start, until the change has this norm at most."""
        for delta, norm in zip(deltas, cls.change_norms(deltas), strict=True):
            if norm > largest and isinstance(delta, cls):
                delta.move_back(largest)

    def move_back(self, largest: float) -> None:
        """Move A and B towards their start, by one share, until the change has this norm.

        Of the share t that is left of both differences, t (B0 (A - A0) + (B - B0) A0) +
        t^2 (B - B0) (A - A0) is left of the change.
        """
        moved_down, moved_up = self.moved()
        of_both = moved_up @ moved_down
        of_one = self.start_up @ moved_down + moved_up @ self.start_down
        parts = ((of_one, of_one), (of_one, of_both), (of_both, of_both))
        squares = [(first * second).sum().item() * self.config.scale**2 for first, second in parts]
        share = _share_left(squares, largest)
        self.down.copy_(self.start_down + share * moved_down)
        self.up.copy_(self.start_up + share * moved_up)

    def file_tensors(self) -> dict[str, Tensor]:
        """Return one LoRA of twice the rank; see `Delta.file_tensors`."""
        down, up = (factor.detach() for factor in self.factors())
        return {**super().file_tensors(), "lora_A.weight": down, "lora_B.weight": up}


def _share_left(squares: Sequence[float], largest: float) -> float:
    """Return the t in [0, 1] at which |t L + t^2 Q| is `largest` at most.

    Args:
        squares: L L, L Q and Q Q, summed over all elements; at t = 1 the norm is larger.
        largest: The norm wanted.
    """
    first, mixed, second = squares
    low, high = 0.0, 1.0
    for _halving in range(HALVINGS):
        share = (low + high) / 2
        square = share**2 * (first + 2 * share * mixed + share**2 * second)
        low, high = (share, high) if square <= largest**2 else (low, share)
    return low
