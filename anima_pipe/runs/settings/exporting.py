"""What `export_adapter` needs to know: of a file of the adapter's own, or of a checkpoint.

Where the option of export-comfy has another name, the field says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from anima_pipe.adapters.styles import find_style
from anima_pipe.weights.writing import require_writable


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """An adapter that is written to a file of its own, or a checkpoint that is written anew.

    Raises:
        ConfigError: There is no such style, or nothing is written in the dtype.
    """

    adapter: Path
    """Its file, of any style, or a folder of PEFT's (input); or the checkpoint."""
    output: Path
    """The file to write; of a checkpoint for diffusers the folder."""
    style: str = "comfy"
    """By whose key names (save_format): "comfy", "diffusers" or "kohya"."""
    dtype: torch.dtype | None = None
    """Of the trained tensors (save_precision); None: as in the adapter's file."""
    drop_norms: bool = False
    """Whether norms are left out, for a program that does not apply them."""
    allow_unmatched: bool = False
    """Whether what of the file matches nothing in the model is left out, with a warning."""

    def __post_init__(self) -> None:
        find_style(self.style)
        require_writable(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class BakeSettings:
    """An adapter that is added to the weights of a full checkpoint.

    Raises:
        ConfigError: Nothing is written in the dtype.
    """

    adapter: Path
    """Its file, of any style, or a folder of PEFT's (input)."""
    checkpoint: Path
    """The base, its text adapter included (merge); it stays as it is."""
    output: Path
    """The checkpoint to write."""
    strength: float = 1.0
    """Factor of the adapter's changes (merge_strength)."""
    dtype: torch.dtype | None = None
    """Of the floating-point tensors written (save_precision); None: each in its own."""
    allow_unmatched: bool = False
    """Whether what of the file matches nothing in the model is left out, with a warning."""

    def __post_init__(self) -> None:
        require_writable(self.dtype)
