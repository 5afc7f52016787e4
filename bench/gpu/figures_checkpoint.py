"""A transformer of the released size, drawn on the card, written, and read by the library."""

from __future__ import annotations

import time

import torch

from anima_pipe.model import load_transformer
from gpu.random_models import write_transformer
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, synchronize


def measure(setting: Setting, results: Results) -> None:
    """Make the file that the parts after this one measure, unless one was given, and load it."""
    if setting.given_checkpoint is None:
        began = time.perf_counter()
        write_transformer(setting)
        results.figure("Checkpoint", of="drawing and writing", s=time.perf_counter() - began)
    peak = PeakMemory(setting.device)
    began = time.perf_counter()
    model = load_transformer(setting.checkpoint, setting.dtype, setting.device)
    synchronize(setting.device)
    results.figure(
        "Checkpoint",
        of="loading",
        s=time.perf_counter() - began,
        numbers=sum(parameter.numel() for parameter in model.parameters()),
        **peak.in_gib(),
    )
    finite = all(torch.isfinite(parameter).all() for parameter in model.parameters())
    results.holds("checkpoint: every number is finite", so=finite)
    off = [
        path for path, each in model.named_parameters() if each.device.type != setting.device.type
    ]
    results.holds("checkpoint: every weight is on the device", so=not off)


if __name__ == "__main__":
    run_part(measure)
