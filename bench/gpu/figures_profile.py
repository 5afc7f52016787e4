"""Where a training step goes: the twenty largest items by the profiler."""

from __future__ import annotations

from anima_pipe.adapters import create_adapter
from anima_pipe.dataset.batches import Batches
from anima_pipe.model import load_transformer
from gpu.loop_runs import random_cache, random_plan, run_loop
from gpu.results import Results
from gpu.setting import Setting, run_part

RANK = 16


def measure(setting: Setting, results: Results) -> None:
    """Profile a step of LoRA at batch 1, and print the whole table into the log."""
    model = load_transformer(setting.checkpoint, setting.dtype, setting.device)
    model.requires_grad_(requires_grad=False)
    adapter = create_adapter("lora", model, network_dim=RANK, network_alpha=RANK)
    cache = random_cache(setting, model.config.llm_adapter.source_width)
    batches = Batches(plan=random_plan(setting, 1), cache=cache)
    kernels = run_loop(setting, model, adapter, batches, profiled=True, counted=False).kernels
    print(kernels.table)
    for item in kernels.largest:
        results.figure("The twenty largest items of a step, LoRA, batch 1", **item)


if __name__ == "__main__":
    run_part(measure)
