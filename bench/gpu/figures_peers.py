"""A training step against diffusers with peft (LoRA) and with LyCORIS (LoKr), on the same weights.

The contestants are those of `bench/train_step.py`: the same layers trained, AdamW, no text adapter.
They take turns step by step.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import statistics
from collections.abc import Mapping

import torch
from train_step import RIVALS, Contestant, contestant, inputs

from gpu.kernels import watching
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, in_ms, seconds_each

RANK = 16
BATCH_SIZES = (1, 4)
ROUNDS = 5
TABLE = f"against diffusers, a step at rank {RANK}"


def measure(setting: Setting, results: Results) -> None:
    """Measure both kinds at both batch sizes."""
    for kind in RIVALS:
        with results.attempt(f"{kind} against {RIVALS[kind]}"):
            compare(setting, results, kind)
        gc.collect()


def compare(setting: Setting, results: Results, kind: str) -> None:
    """Measure one kind and its rival in every way."""
    options = sizes(setting)
    contestants = {name: contestant(name, options) for name in (kind, RIVALS[kind])}
    for batch_size, checkpointed in itertools.product(BATCH_SIZES, (False, True)):
        options.batch = batch_size
        batch = inputs(options)
        how = "checkpointed" if checkpointed else "plain"
        for each in contestants.values():
            each.checkpoint(checkpointed)
        with results.attempt(f"{kind} against {RIVALS[kind]}, batch {batch_size}, {how}"):
            for name, columns in measured(contestants, batch, setting).items():
                results.figure(TABLE, step_of=name, batch=batch_size, base=how, **columns)


def measured(
    contestants: Mapping[str, Contestant], batch: tuple[torch.Tensor, ...], setting: Setting
) -> dict[str, dict[str, object]]:
    """Have all take turns; return each one's columns, ours first and the measure of the others."""
    peaks = {name: peak_of(each, batch, setting) for name, each in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    host: dict[str, list[float]] = {name: [] for name in contestants}
    for _round in range(1 if setting.small else ROUNDS):
        for name, each in contestants.items():
            work = functools.partial(step, each, batch)
            whole, asked = seconds_each(work, setting.device, rounds=1, settling=0)
            seconds[name] += whole
            host[name] += asked
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(medians.values()))
    return {
        name: {
            **in_ms(seconds[name]),
            "host ms": statistics.median(host[name]) * 1e3,
            "launches": launches(each, batch, setting),
            **peaks[name],
            "times ours": medians[name] / ours,
        }
        for name, each in contestants.items()
    }


def sizes(setting: Setting) -> argparse.Namespace:
    """Return the options of `bench/train_step.py` that stand for the released size."""
    return argparse.Namespace(
        blocks=1 if setting.small else 28,
        width=256 if setting.small else 2048,
        side=setting.pixels // 8,
        text=512,
        batch=1,
        rank=RANK,
        dtype="fp32" if setting.small else "bf16",
        device=str(setting.device),
    )


def step(trained: Contestant, batch: tuple[torch.Tensor, ...]) -> None:
    """Do one training step without waiting for the device in between."""
    trained.velocity(*batch).float().square().mean().backward()
    trained.optimizer.step()
    trained.optimizer.zero_grad()


def launches(trained: Contestant, batch: tuple[torch.Tensor, ...], setting: Setting) -> int | None:
    """Return how many kernels a step starts; None where the device has none."""
    if not setting.on_gpu:
        return None
    with watching(setting.device) as kernels:
        step(trained, batch)
    return kernels.launches


def peak_of(
    trained: Contestant, batch: tuple[torch.Tensor, ...], setting: Setting
) -> dict[str, float | None]:
    """Return what a step allocates above what lies there before it, its optimizer's state there."""
    step(trained, batch)
    before = torch.cuda.memory_allocated(setting.device) / 2**30 if setting.on_gpu else 0.0
    peak = PeakMemory(setting.device)
    step(trained, batch)
    found = peak.in_gib()
    allocated = found["allocated GiB"]
    above = None if allocated is None else allocated - before
    return {"GiB above the weights": above, "reserved GiB": found["reserved GiB"]}


if __name__ == "__main__":
    run_part(measure)
