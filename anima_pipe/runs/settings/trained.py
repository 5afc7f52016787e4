"""What is trained: the model, and an adapter on it or none.

Importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from anima_pipe.adapters.adapter import read_settings
from anima_pipe.errors import check_above_zero, check_choice, check_number
from anima_pipe.runtime import torch_dtype
from anima_pipe.trained import PartRate

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The model: its files, and how it is kept.

    Raises:
        ConfigError: There is no such precision.
    """

    transformer: Path
    """In ComfyUI's or diffusers' names."""
    llm_adapter: Path | None = None
    """The text adapter's own file; None: it is in the transformer's."""
    mixed_precision: Precision = "no"
    """What it is computed in, and kept in where it is frozen; "no" is fp32. What trains is kept in
    fp32 all the same."""
    fp8_base: bool = False
    """Whether the weights of its blocks are kept in 8 bits."""
    gradient_checkpointing: bool = False
    """Whether its blocks are run again for their backward passes, which saves memory."""
    base_weights: tuple[tuple[Path, float], ...] = ()
    """Adapter files merged into it first, and their strengths."""
    allow_unmatched: bool = False
    """Whether what of these files, and of network_weights, matches nothing is left out."""

    def __post_init__(self) -> None:
        check_choice("mixed_precision", self.mixed_precision, get_args(Precision))

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are kept in, and what is fed to them."""
        return torch_dtype(self.mixed_precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAdapter:
    """The model's own weights are trained: what is known as full fine-tuning."""

    part_rates: tuple[PartRate, ...] = ()
    """Parts of the model with learning rates of their own; 0: they stay as they are."""
    full_bf16: bool = False
    """Whether the weights are kept in bf16, rounded by chance; beside mixed_precision bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """The adapter that is trained.

    Raises:
        ConfigError: There is no such kind, it does not take an argument, or a number is none.
    """

    kind: str = "lora"
    """One of `adapters.registry.KINDS`."""
    network_dim: int = 16
    """The rank."""
    network_alpha: float | None = None
    """The change is multiplied by alpha / rank; None: alpha = rank."""
    network_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Further arguments of `create_adapter`: which modules, dropout, what the kind takes."""
    network_weights: Path | None = None
    """An adapter file to go on from, its optimizer afresh."""
    dim_from_weights: bool = False
    """Whether its rank and alpha are wanted, whatever is said above."""
    part_rates: tuple[PartRate, ...] = ()
    """Parts of the model with learning rates of their own; 0: not trained."""
    scale_weight_norms: float | None = None
    """Largest norm of each layer's change; None: any."""
    full_bf16: bool = False
    """Whether its matrices are kept in bf16, rounded by chance; beside mixed_precision bf16."""

    def __post_init__(self) -> None:
        check_number("network_dim", self.network_dim, least=1)
        check_above_zero("network_alpha", self.network_alpha)
        check_above_zero("scale_weight_norms", self.scale_weight_norms)
        read_settings(self.kind, self.network_dim, self.network_alpha, self.network_args)

    @property
    def arguments(self) -> dict[str, Any]:
        """All that `create_adapter` takes by these names."""
        own = {"network_dim": self.network_dim, "network_alpha": self.network_alpha}
        return {**own, **self.network_args}
