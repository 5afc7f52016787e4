"""Stage 5: write the adapter as inference programs load it, and verify what was written.

Reads   an adapter file of any style, the transformer it was trained on (to verify against)
Writes  one .safetensors file
Costs   seconds
"""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was written, and how it was checked."""

    output: str
    keys: int
    """Tensors in the file."""
    verified: bool
    """The file, applied by ComfyUI's rules, gives the weights that the adapter gives."""
    largest_difference: float
    """Relative to the largest weight change of each layer."""
