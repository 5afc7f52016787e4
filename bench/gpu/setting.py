"""What every part is told, and how a part is run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anima_pipe.runtime import choose_device
from gpu.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where a part runs, and on how much."""

    device: torch.device
    small: bool
    """The rehearsal: tiny models, few rounds; what comes out is no figure of anything."""
    scratch: Path
    """A folder that all parts share, on a disk that may be slow."""
    given_checkpoint: Path | None
    """A transformer to measure instead of a random one."""

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA card."""
        return self.device.type == "cuda"

    @property
    def pixels(self) -> int:
        """Side of the pictures that figures are of."""
        return 128 if self.small else 1024

    @property
    def dtype(self) -> torch.dtype:
        """Of the base that figures are of."""
        return torch.float32 if self.small else torch.bfloat16

    @property
    def checkpoint(self) -> Path:
        """The transformer that figures are of; the part `checkpoint` makes it."""
        return self.given_checkpoint or self.scratch / "transformer.safetensors"


def run_part(measure: Callable[[Setting, Results], None]) -> None:
    """Read what the runner told this process, measure, and end with 1 if something failed."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    given = parser.parse_args()
    results = Results(given.results)
    with results.attempt("the part as a whole"):
        setting = Setting(
            device=choose_device(given.device),
            small=given.small,
            scratch=given.scratch,
            given_checkpoint=given.checkpoint,
        )
        measure(setting, results)
    sys.exit(results.failed)
