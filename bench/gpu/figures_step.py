"""Steps of the real training loop on a transformer of the released size, at 1024 pixels."""

from __future__ import annotations

import statistics

import torch

from anima_pipe.adapters import create_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.dataset.batches import Batches
from anima_pipe.model import BLOCK_LAYERS, load_transformer
from anima_pipe.shards import Cache
from anima_pipe.trainer import deterministic_kernels
from gpu.loop_runs import Watched, estimated_gib, random_cache, random_plan, run_loop
from gpu.peaks import datasheet_tflops, matmul_tflops
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, in_ms

RANK = 16
KINDS = {"LoRA": "lora", "LoKr": "lokr"}
BATCH_SIZES = (1, 4)
VARIANTS = {
    "plain": {},
    "checkpointed": {"checkpointed": True},
    "deterministic": {"deterministic": True},
    "int8": {"in_8_bits": True},
    "int8, checkpointed": {"in_8_bits": True, "checkpointed": True},
}
TABLE = f"a training step at rank {RANK}"


class Bench:
    """The model and what is known of the device, for all rows."""

    def __init__(self, setting: Setting, results: Results) -> None:
        self.setting = setting
        self.results = results
        self.model = load_transformer(setting.checkpoint, setting.dtype, setting.device)
        self.model.requires_grad_(requires_grad=False)
        width = self.model.config.llm_adapter.source_width
        self.cache: Cache = random_cache(setting, width)
        self.plain_flops: dict[tuple[str, int], int] = {}
        """Of a step, by kind and batch size."""
        side = 128 if setting.small else 8192
        self.measured_tflops = matmul_tflops(setting.device, setting.dtype, side)
        name = torch.cuda.get_device_name(setting.device) if setting.on_gpu else ""
        self.datasheet_tflops = datasheet_tflops(name)

    def row(
        self,
        kind: str,
        batch_size: int,
        variant: str,
        *,
        checkpointed: bool = False,
        in_8_bits: bool = False,
        deterministic: bool = False,
    ) -> None:
        """Measure one way to train, and note it."""
        setting = self.setting
        plan = random_plan(setting, batch_size)
        peak = PeakMemory(setting.device)
        self.model.checkpoint_blocks(checkpointed)
        adapter = create_adapter(KINDS[kind], self.model, network_dim=RANK, network_alpha=RANK)
        try:
            with deterministic_kernels(wanted=deterministic):
                watched = run_loop(
                    setting,
                    self.model,
                    adapter,
                    Batches(plan=plan, cache=self.cache),
                    profiled=setting.on_gpu,
                    counted=variant == "plain",
                )
            estimate = estimated_gib(setting, adapter, plan, in_8_bits=in_8_bits)
        finally:
            adapter.remove()
        if watched.flops is not None:
            self.plain_flops[kind, batch_size] = watched.flops
        self.results.figure(
            TABLE,
            adapter=kind,
            batch=batch_size,
            base=variant,
            **in_ms(watched.seconds),
            **self.of_host(watched),
            **peak.in_gib(),
            **{"estimate GiB": estimate},
            **self.shares(kind, batch_size, statistics.median(watched.seconds)),
        )

    def of_host(self, watched: Watched) -> dict[str, float | int | None]:
        """Return what the processor does for a step, as columns."""
        return {
            "host ms": statistics.median(watched.host) * 1e3 if watched.host else None,
            "data wait ms": statistics.median(watched.waited) * 1e3,
            "launches": watched.kernels.launches,
        }

    def shares(self, kind: str, batch_size: int, seconds: float) -> dict[str, float | None]:
        """Return the share of the peak that goes into what a plain step must compute."""
        flops = self.plain_flops.get((kind, batch_size))
        if not flops:
            return {"TFLOP": None, "% of measured peak": None, "% of data sheet": None}
        rate = flops / seconds / 1e12
        listed = self.datasheet_tflops
        return {
            "TFLOP": flops / 1e12,
            "% of measured peak": 100 * rate / self.measured_tflops,
            "% of data sheet": None if listed is None else 100 * rate / listed,
        }


def measure(setting: Setting, results: Results) -> None:
    """Measure every kind, batch size and variant: those on a whole base first."""
    bench = Bench(setting, results)
    for in_8_bits in (False, True):
        if in_8_bits:
            keep_in_eight_bits(bench.model, BLOCK_LAYERS)
        for batch_size in BATCH_SIZES:
            for kind in KINDS:
                for variant, how in VARIANTS.items():
                    if how.get("in_8_bits", False) == in_8_bits:
                        with results.attempt(f"{kind}, batch {batch_size}, {variant}"):
                            bench.row(kind, batch_size, variant, **how)


if __name__ == "__main__":
    run_part(measure)
