"""What `export_adapter` needs to know: of a file of the adapter's own, or of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """An adapter that is written to a file of its own."""

    adapter: Path
    """Its file, of any style, or a folder of PEFT's."""
    output: Path
    """The file to write."""
    style: str = "comfy"
    """By whose key names: "comfy", "diffusers" or "kohya"."""
    dtype: torch.dtype | None = None
    """Of the trained tensors; None: as in the adapter's file."""
    drop_norms: bool = False
    """Whether norms are left out, for a program that does not apply them."""
    allow_unmatched: bool = False
    """Whether what of the file matches nothing in the model is left out, with a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeSettings:
    """An adapter that is added to the weights of a full checkpoint."""

    adapter: Path
    """Its file, of any style, or a folder of PEFT's."""
    checkpoint: Path
    """The base, its text adapter included; it stays as it is."""
    output: Path
    """The checkpoint to write."""
    strength: float = 1.0
    """Factor of the adapter's changes."""
    dtype: torch.dtype | None = None
    """Of the floating-point tensors written; None: each in its own."""
    allow_unmatched: bool = False
    """Whether what of the file matches nothing in the model is left out, with a warning."""
