"""T-LoRA: a LoRA of which noisy samples train a part only (Soboleva et al., arXiv:2507.05964).

Of r ranks the first floor((1 - sigma)^a (r - least)) + least are in use: the paper's rule, with
sigma for its t / T. What little a picture drowned in noise tells about its subject is then learnt
by few ranks, and the others do not overfit to it. A file holds a plain LoRA, and programs that load
it use all ranks at every sigma, as previews here do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anima_pipe.adapters.delta import Adapted, deltas_of, linear_root
from anima_pipe.adapters.lora import LoraConfig, LoraDelta
from anima_pipe.adapters.low_rank import kaiming_uniform
from anima_pipe.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TloraConfig(LoraConfig):
    """How the T-LoRA of one linear layer is made; otherwise as `LoraConfig`."""

    tlora_min_rank: int = 1
    """Ranks in use at sigma 1, from 1 up to the rank."""
    tlora_exponent: float = 1.0
    """Above 1 the rank falls faster as sigma grows."""

    def __post_init__(self) -> None:
        # The zero-argument form of super does not know the class that slots make anew.
        LoraConfig.__post_init__(self)
        if not 1 <= self.tlora_min_rank <= self.rank:
            raise ConfigError(
                f"tlora_min_rank is {self.tlora_min_rank}", f"use 1 to {self.rank}, the rank"
            )
        if self.tlora_exponent <= 0:
            raise ConfigError(f"tlora_exponent is {self.tlora_exponent}", "use 1, or more than 0")

    def start(self, base: nn.Module, generator: torch.Generator) -> TloraDelta:
        """Return a T-LoRA that changes nothing yet; see `DeltaConfig.create`."""
        linear = linear_root(base)
        down = kaiming_uniform(self.rank, linear.in_features, generator)
        return TloraDelta(down, torch.zeros(linear.out_features, self.rank), self)


def ranks_in_use(sigmas: Tensor, config: TloraConfig) -> Tensor:
    """Return how many ranks each sample trains.

    Args:
        sigmas: Float[B], in [0, 1].
        config: The rank, the least of it, and the exponent.

    Returns:
        Int64[B].
    """
    share = (1 - sigmas.float()) ** config.tlora_exponent
    return (share * (config.rank - config.tlora_min_rank)).floor().long() + config.tlora_min_rank


class TloraDelta(LoraDelta):
    """A LoRA that learns at the start of each pass how many ranks are in use."""

    config: TloraConfig

    used: Tensor | None = None
    """Float[B, r]: 1 for the ranks that a sample of the pass trains, 0 for the others."""

    @classmethod
    def begin_pass(cls, adapted: Sequence[Adapted], sigmas: Tensor, dtype: torch.dtype) -> None:
        """Find out the ranks in use, once for all layers of one rank; see `Delta.begin_pass`."""
        super().begin_pass(adapted, sigmas, dtype)
        used: dict[TloraConfig, Tensor] = {}
        for delta in deltas_of(adapted, cls):
            if delta.config not in used:
                ranks = torch.arange(delta.config.rank, device=sigmas.device)
                counts = ranks_in_use(sigmas, delta.config).unsqueeze(1)
                used[delta.config] = (ranks < counts).to(dtype)
            # Kept until the next pass: a checkpointed block asks again in the backward pass.
            delta.used = used[delta.config]

    def inner_scale(self, x: Tensor, strength: float | Tensor) -> tuple[float, Tensor | None]:
        """Return LoRA's factors of the inner activation, zero for the ranks not in use."""
        scale, kept = super().inner_scale(x, strength)
        if not self.training:
            return scale, kept
        assert self.used is not None, "T-LoRA trains without Adapter.follow_passes"
        used = self.used.view(-1, *[1] * (x.ndim - 2), self.config.rank).to(x.dtype)
        return scale, used if kept is None else kept * used
