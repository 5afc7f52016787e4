"""Steps of training the model itself, on a transformer of the released size, at 1024 pixels."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from anima_pipe.dataset.batches import Batches
from anima_pipe.finetuning.whole_model import WholeModel
from anima_pipe.model import AnimaTransformer, load_transformer
from anima_pipe.optimizing.rounding import PIECE_NUMBERS
from gpu.loop_runs import How, estimated_gib, random_cache, random_plan, run_loop
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, in_ms

# Random weights bear no large steps.
RATE = 1e-6
WAYS = {
    "bf16 throughout, AdamW8bit": How("AdamW8bit", rate=RATE, in_bf16=True),
    "bf16 throughout, AdamW": How("AdamW", rate=RATE, in_bf16=True),
    "fp32 weights, AdamW8bit": How("AdamW8bit", rate=RATE),
    "fp32 weights, AdamW": How("AdamW", rate=RATE),
}
TABLE = "training the model itself, checkpointed, batch 1"


def measure(setting: Setting, results: Results) -> None:
    """Measure every way to keep the weights and the optimizer's state."""
    for name, how in WAYS.items():
        if how.optimizer == "AdamW8bit" and find_spec("bitsandbytes") is None:
            results.note(name, "bitsandbytes is not installed")
            continue
        with results.attempt(name):
            row(setting, results, name, how)


def row(setting: Setting, results: Results, name: str, how: How) -> None:
    """Measure one way, from the model's loading on, and note it."""
    peak = PeakMemory(setting.device)
    model = loaded(setting, how)
    trained = WholeModel(model)
    if model.dtype != setting.dtype and not how.in_bf16:
        model.compute_in(setting.dtype)
    plan = random_plan(setting, batch_size=1)
    cache = random_cache(setting, model.config.llm_adapter.source_width)
    batches = Batches(plan=plan, cache=cache)
    watched = run_loop(setting, model, trained, batches, profiled=False, counted=False, how=how)
    widened = PIECE_NUMBERS if how.in_bf16 else 0
    estimate = estimated_gib(setting, trained, plan, optimizer=how.optimizer, widened=widened)
    results.figure(
        TABLE, way=name, **in_ms(watched.seconds), **peak.in_gib(), **{"estimate GiB": estimate}
    )


def loaded(setting: Setting, how: How) -> AnimaTransformer:
    """Return the model as its weights train, its blocks checkpointed."""
    dtype = torch.bfloat16 if how.in_bf16 else torch.float32
    model = load_transformer(setting.checkpoint, dtype, setting.device)
    model.checkpoint_blocks(enabled=True)
    return model


if __name__ == "__main__":
    run_part(measure)
