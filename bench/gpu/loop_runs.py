"""Short runs of the real training loop on random latents and captions from a cache on disk."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import PlannedSample
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Moment, TextCondition
from anima_pipe.runs.memory_needs import largest_batch, memory_needs
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trained import Trained
from anima_pipe.trainer import StopRequest, Trainer, TrainerConfig, prepared, start_accelerate
from gpu.kernels import Kernels, watching
from gpu.setting import Setting

SAMPLES = 8
CAPTION_TOKENS = 80
SETTLING_STEPS = 3
TIMED_STEPS = 8


def random_cache(setting: Setting, qwen_width: int) -> Cache:
    """Write as many latents and captions as a short run needs; return the cache."""
    folder = setting.scratch / "random-cache"
    if not folder.exists():
        side = setting.pixels // 8
        generator = torch.Generator().manual_seed(3)
        with LatentWriter(folder, "a" * 32, "fp16", "vae") as latents:
            for number in range(SAMPLES):
                latents.add(_key(number, "0"), torch.randn(16, side, side, generator=generator), {})
        with TextWriter(folder, "b" * 32, "fp16", "qwen") as texts:
            for number in range(SAMPLES):
                hidden = torch.randn(CAPTION_TOKENS, qwen_width, generator=generator)
                ids = torch.randint(2, 90, (CAPTION_TOKENS,), generator=generator).int()
                texts.add(_key(number, "f"), TextCondition(hidden, ids), {})
    return open_cache(folder)


def _key(number: int, ending: str) -> str:
    return f"{number:031x}{ending}"


def random_plan(setting: Setting, batch_size: int) -> Plan:
    """Return the plan of a run over that cache, all pictures of one size."""
    samples = [
        PlannedSample(
            name=str(number),
            latents=(_key(number, "0"),),
            texts=(_key(number, "f"),),
            group=(0, setting.pixels, setting.pixels),
            batch_size=batch_size,
            repeats=1,
            dropout_rate=0.0,
            dropout_every_n_epochs=0,
        )
        for number in range(SAMPLES)
    ]
    return Plan(samples=tuple(samples), seed=5)


@dataclass
class Watched:
    """What a run showed of its steps. It is a hook of the run."""

    device: torch.device
    settling: int
    """Steps that do not count."""
    timed: int
    """Steps after them that do."""
    profiled: bool
    """Whether one more step is taken under the profiler."""
    counted: bool
    """Whether one more is taken under the counter of operations."""
    seconds: list[float] = field(default_factory=list)
    """Of each timed step, without the wait for its data."""
    waited: list[float] = field(default_factory=list)
    """For the data of each timed step."""
    host: list[float] = field(default_factory=list)
    """From a step's beginning until the host had asked for its passes and for clipping."""
    flops: int | None = None
    """Of the products of one step, what is computed twice counted twice; None: not counted."""
    kernels: Kernels = field(default_factory=Kernels)
    """Of one step; empty unless it was profiled."""
    reads_weights = False

    def __post_init__(self) -> None:
        self._watching = ExitStack()
        self._counter: FlopCounterMode | None = None
        self._began = 0.0
        self._step = 0

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.settling + self.timed + self.profiled + self.counted

    def due(self, moment: Moment) -> bool:  # noqa: ARG002 - at every moment alike
        """Tell that it always is."""
        return True

    def at(self, moment: Moment) -> None:
        """Take the last step's times, and watch the steps after the timed ones more closely."""
        self._step = moment.step
        first_watched = self.settling + self.timed
        if self.settling < moment.step <= first_watched:
            assert moment.result is not None
            self.seconds.append(moment.result.seconds)
            self.waited.append(moment.result.waited_seconds)
        self._close()
        if self.profiled and moment.step == first_watched:
            self.kernels = self._watching.enter_context(watching(self.device))
        elif self.counted and moment.step == first_watched + self.profiled:
            self._counter = self._watching.enter_context(FlopCounterMode(display=False))

    def close(self) -> None:
        """Read what profiler and counter saw, if the run ended within their steps."""
        self._close()

    def _close(self) -> None:
        self._watching.close()
        if self._counter is not None:
            self.flops = self._counter.get_total_flops()
            self._counter = None

    def begins(self) -> None:
        """Note that a step begins."""
        self._began = time.perf_counter()

    def asked(self) -> None:
        """Note that the host has asked for all it can before it must wait for the device."""
        if self.settling <= self._step < self.settling + self.timed:
            self.host.append(time.perf_counter() - self._began)


@dataclass(frozen=True)
class How:
    """How a run takes its steps."""

    optimizer: str = "AdamW"
    rate: float = 1e-4
    in_bf16: bool = False
    """Whether what trains is kept in bf16."""


def run_loop(
    setting: Setting,
    transformer: AnimaTransformer,
    trained: Trained,
    batches: Batches,
    *,
    profiled: bool,
    counted: bool,
    how: How | None = None,
) -> Watched:
    """Train as `anima-pipe train` does, and watch the steps."""
    how = how or How()
    watched = Watched(
        setting.device,
        settling=0 if setting.small else SETTLING_STEPS,
        timed=1 if setting.small else TIMED_STEPS,
        profiled=profiled,
        counted=counted,
    )
    groups = [
        ParameterGroup(name=group.name, parameters=group.parameters, learning_rate=how.rate)
        for group in trained.groups()
    ]
    steps = watched.steps
    optimizer = create_optimizer(groups, OptimizerConfig(optimizer_type=how.optimizer))
    if how.in_bf16:
        StochasticRounding(optimizer, trained.matrices(), seed=9, piecewise=True)
    precision = "bf16" if setting.dtype == torch.bfloat16 else "no"
    accelerator = start_accelerate(precision, cpu=not setting.on_gpu)
    tell_of_waiting(accelerator, watched)
    schedule = create_schedule(optimizer, ScheduleConfig(lr_scheduler="constant"), steps)
    module, optimizer = prepared(accelerator, TextConditionedTransformer(transformer), optimizer)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        schedule=schedule,
        batches=batches,
        config=TrainerConfig(
            max_train_steps=steps, objective=ObjectiveConfig(), seed=9, dtype=setting.dtype
        ),
        hooks=[watched],
        stop=NeverStopping(watched),
    )
    trainer.run()
    return watched


class NeverStopping(StopRequest):
    """Tells the watcher that a step begins: that is when the loop looks whether it is to stop.

    Args:
        watched: The watcher.
    """

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched

    @property
    def is_made(self) -> bool:
        """Whether the run is to end: no."""
        self._watched.begins()
        return False


def tell_of_waiting(accelerator: Accelerator, watched: Watched) -> None:
    """Have the watcher told when the loop comes to its one wait for the device.

    It brings a step's measures together over the processes there, right behind clipping.
    """
    reduce = accelerator.reduce

    def told(*arguments: Any, **named: Any) -> Any:
        watched.asked()
        return reduce(*arguments, **named)

    accelerator.reduce = told


def estimated_gib(
    setting: Setting,
    trained: Trained,
    plan: Plan,
    *,
    in_8_bits: bool = False,
    optimizer: str = "AdamW",
    widened: int = 0,
) -> float:
    """Return what the library itself says that such a run needs."""
    batch, device = largest_batch(plan), setting.device
    needs = memory_needs(trained, optimizer, batch, device, in_8_bits=in_8_bits, widened=widened)
    return needs.whole / 2**30
