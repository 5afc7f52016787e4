"""PiSSA: a LoRA that starts from the base's largest directions (Meng et al., arXiv:2404.02948).

The paper takes the start out of the base. Here the base stays as it is, in its dtype, and the start
is taken out of the change: what trains is the same, and what is exported is a difference from the
base as it was published, a LoRA of twice the rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import effective_weights
from anima_pipe.adapters.frozen import FrozenLinear
from anima_pipe.adapters.lora import LoraConfig, LoraDelta, lora_delta
from anima_pipe.adapters.low_rank import leading_factors
from anima_pipe.errors import ConfigError


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
    up, down = leading_factors(weight, rank, generator)
    # The product is to be the base's part after it was scaled.
    return PissaDelta(down / config.scale**0.5, up / config.scale**0.5, config)


class PissaDelta(LoraDelta):
    """What a LoRA has moved away from its start, which stays part of it.

    Args:
        down: The start, Float32[r, in].
        up: The start, Float32[out, r].
        config: As of a LoRA.
    """

    start_down: Tensor
    start_up: Tensor

    def __init__(self, down: Tensor, up: Tensor, config: LoraConfig) -> None:
        super().__init__(down.clone(), up.clone(), config)
        self.register_buffer("start_down", down)
        self.register_buffer("start_up", up)

    @property
    def rank(self) -> int:
        """The rank of what a file holds: the end and the start."""
        return 2 * self.config.rank

    @property
    def alpha(self) -> float:
        """The alpha that goes with that rank."""
        return 2 * self.config.stated_alpha

    def frozen(self) -> dict[str, Tensor]:
        """Return the start; see `Delta.frozen`."""
        return {"start_A": self.start_down, "start_B": self.start_up}

    def added(self, x: Tensor, strength: float) -> Tensor:
        """Return what the trained and the started LoRA differ by; see `LinearDelta.added`."""
        scale = self.inner_scale(x, strength)
        started = lora_delta(x, self.start_down, self.start_up, scale)
        return lora_delta(x, self.down, self.up, scale) - started

    def changed(self, base: FrozenLinear, x: Tensor, strength: float) -> None:
        """Leave it to `added`: a start put on and taken off again is not nothing to the bit."""

    def product(self) -> Tensor:
        """Return the difference of the products; see `LinearDelta.product`."""
        return (self.up @ self.down - self.start_up @ self.start_down) * self.config.scale

    def limit_norm(self, largest: float) -> None:
        """Refuse: scaling the matrices down would bring the start back, negated.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"scale_weight_norms is {largest}, but with pissa the matrices do not start from zero",
            "use one of the two",
        )

    def file_tensors(self) -> dict[str, Tensor]:
        """Return one LoRA of twice the rank; see `Delta.file_tensors`."""
        factors = {
            "lora_A.weight": torch.cat([self.down.detach(), self.start_down]),
            "lora_B.weight": torch.cat([self.up.detach(), -self.start_up], dim=1),
        }
        return {**super().file_tensors(), **factors}

    def plain_lora(self) -> tuple[Tensor, Tensor] | None:
        """Return the same with alpha / rank folded into the second."""
        if self.has_dora:
            return None
        factors = self.file_tensors()
        return factors["lora_A.weight"], factors["lora_B.weight"] * self.config.scale
