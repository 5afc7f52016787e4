"""Losses that are no numbers: the run stops before they do harm, or passes over their steps."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from commands import anima_pipe, assert_one_error
from golden_model import golden_transformer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.hooks.ema import Ema
from anima_pipe.hooks.train_state import Stateful
from anima_pipe.model import TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Moment, TextCondition
from anima_pipe.runtime import torch_dtype
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trainer import NonFiniteError, Trainer, TrainerConfig, prepared, start_accelerate

NAMES = ["good.png", "broken.png", "fine.png"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Latents of three pictures, of which the second has numbers whose square is infinite."""
    folder = tmp_path_factory.mktemp("cache")
    generator = torch.Generator().manual_seed(3)
    width = golden_transformer("a").config.llm_adapter.source_width
    with LatentWriter(folder, "a" * 32, "fp32", "vae") as latents:
        for number, name in enumerate(NAMES):
            latent = torch.randn(16, 8, 8, generator=generator)
            if name == "broken.png":
                latent[0, 0, 0] = 3e38
            latents.add(f"{number:032x}", latent, {})
    with TextWriter(folder, "b" * 32, "fp32", "qwen") as texts:
        texts.add(EMPTY_CAPTION, TextCondition(torch.zeros(0, width), torch.ones(1).int()), {})
    return open_cache(folder)


class Watcher:
    """Remembers every moment, and the weights at each: the adapter's, or others."""

    reads_weights = False

    def __init__(self, adapter: Adapter, weights: Stateful | None = None) -> None:
        self.adapter = adapter
        self.shown = weights or adapter
        self.moments: list[Moment] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def due(self, moment: Moment) -> bool:
        return moment.step >= 0

    def at(self, moment: Moment) -> None:
        self.moments.append(moment)
        self.weights.append({n: t.clone() for n, t in self.shown.state_dict().items()})


def parts_of(
    cache: Cache,
    *,
    skips: bool,
    steps: int = 6,
    accumulation: int = 1,
    precision: str = "no",
    names: list[str] = NAMES,
) -> tuple[dict[str, Any], Adapter]:
    """Return all that a trainer is made of but for its hooks, and what it trains."""
    dtype = torch_dtype(precision)
    transformer = golden_transformer("a").to(dtype).requires_grad_(requires_grad=False)
    adapter = create_adapter("lora", transformer, network_dim=4)
    groups = [
        ParameterGroup(name=group.name, parameters=group.parameters, learning_rate=1e-2)
        for group in adapter.groups()
    ]
    optimizer = create_optimizer(groups, OptimizerConfig())
    samples = [
        PlannedSample(
            name=name,
            latents=(f"{number:032x}",),
            texts=(EMPTY_CAPTION,),
            group=(0, 64, 64),
            batch_size=1,
            repeats=1,
            dropout_rate=0.0,
            dropout_every_n_epochs=0,
        )
        for number, name in enumerate(NAMES)
        if name in names
    ]
    accelerator = start_accelerate(precision, cpu=True)
    schedule = create_schedule(optimizer, ScheduleConfig(), steps)
    module, optimizer = prepared(accelerator, TextConditionedTransformer(transformer), optimizer)
    plan = Plan(samples=tuple(samples), seed=5)
    parts = {
        "accelerator": accelerator,
        "module": module,
        "optimizer": optimizer,
        "schedule": schedule,
        "batches": Batches(plan=plan, cache=cache, accumulation=accumulation),
        "config": TrainerConfig(
            max_train_steps=steps,
            objective=ObjectiveConfig(),
            skips_non_finite=skips,
            dtype=dtype,
        ),
    }
    return parts, adapter


def trainer_of(cache: Cache, **how: Any) -> tuple[Trainer, Watcher]:
    """Return a trainer, and its only hook."""
    parts, adapter = parts_of(cache, **how)
    watcher = Watcher(adapter)
    return Trainer(**parts, hooks=[watcher]), watcher


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_broken_picture_stops_the_run_before_its_step_is_taken(cache, accumulation):
    trainer, watcher = trainer_of(cache, skips=False, accumulation=accumulation)

    with pytest.raises(NonFiniteError, match=r"step \d: loss (nan|inf).*broken\.png"):
        trainer.run()

    assert trainer.moment == watcher.moments[-1]
    assert all(torch.isfinite(tensor).all() for tensor in watcher.weights[-1].values())


def test_steps_on_a_broken_picture_are_passed_over_and_counted(cache):
    trainer, watcher = trainer_of(cache, skips=True)

    end = trainer.run()

    assert end.step == 6
    assert end.skipped_steps == trainer.tally.skipped_steps == 2
    assert len(trainer.tally.losses) == 4
    assert all(map(math.isfinite, trainer.tally.losses))
    for before, after in itertools.pairwise(range(7)):
        passed_over = not watcher.moments[after].step_taken
        assert _same(watcher.weights[before], watcher.weights[after]) == passed_over


def test_an_adapter_past_mending_is_not_trained_for_ever(cache):
    trainer, _ = trainer_of(cache, skips=True, steps=100, accumulation=3)

    with pytest.raises(NonFiniteError, match="20th time in a row"):
        trainer.run()


GOOD = ["good.png", "fine.png"]


@pytest.fixture
def accelerate_made_anew() -> Iterator[None]:
    """accelerate keeps one precision per process, and other tests expect to choose theirs."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class StepsTaken:
    """Remembers what the optimizer and the scaler of a run hold at every moment."""

    reads_weights = False

    def __init__(self, accelerator: Accelerator, optimizer: Stateful) -> None:
        self.scaler = accelerator.scaler
        self.held = optimizer
        self.optimizer: list[dict[str, torch.Tensor]] = []
        self.scales: list[float] = []

    def due(self, moment: Moment) -> bool:
        return moment.step >= 0

    def at(self, moment: Moment) -> None:  # noqa: ARG002 - of every moment alike
        assert self.scaler is not None
        state = self.held.state_dict()["state"]
        self.optimizer.append(
            {f"{n} {key}": t.clone() for n, held in state.items() for key, t in held.items()}
        )
        self.scales.append(self.scaler.get_scale())


@pytest.mark.usefixtures("accelerate_made_anew")
def test_a_gradient_beyond_fp16_lowers_the_loss_scale_and_changes_nothing_else(cache):
    """This model's gradients leave fp16's range where the loss is scaled as at the start."""
    parts, adapter = parts_of(cache, skips=False, precision="fp16", names=GOOD)
    ema, held = Ema(adapter, 0.5), StepsTaken(parts["accelerator"], parts["optimizer"])
    watcher, averages = Watcher(adapter), Watcher(adapter, ema)
    trainer = Trainer(**parts, hooks=[ema, watcher, averages, held])

    end = trainer.run()

    assert all(
        p.dtype == torch.float32 for g in trainer.optimizer.param_groups for p in g["params"]
    )
    passed_over = [not moment.step_taken for moment in watcher.moments[1:]]
    assert passed_over == [True] * end.skipped_steps + [False] * (6 - end.skipped_steps)
    assert 0 < end.skipped_steps < 6
    assert len(trainer.tally.losses) == 6 - end.skipped_steps
    assert all(map(math.isfinite, trainer.tally.losses))
    for before, skipped in enumerate(passed_over):
        after = before + 1
        assert held.scales[after] == held.scales[before] * (0.5 if skipped else 1)
        for record in (watcher.weights, averages.weights, held.optimizer):
            assert _same(record[before], record[after]) == skipped


@pytest.mark.usefixtures("accelerate_made_anew")
def test_a_gradient_beyond_fp16_at_any_scale_ends_the_run(cache):
    trainer, _ = trainer_of(cache, skips=False, steps=100, precision="fp16", names=GOOD)
    scaler = trainer.accelerator.scaler
    assert scaler is not None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})

    with pytest.raises(NonFiniteError, match="20th time in a row"):
        trainer.run()

    assert scaler.get_scale() == 2.0**41
    assert trainer.tally.skipped_steps == 19


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_cannot_go_on_leaves_the_state_of_its_last_good_step(cached, tmp_path):
    """A rate this high overflows the weights' products in the second step."""
    given = {**cached, "output_dir": tmp_path, "learning_rate": 1e30, "max_train_steps": 4}
    ended = anima_pipe("train", **given, log_with="tensorboard", logging_dir=tmp_path / "logs")

    assert_one_error(ended, "step 2: loss", "25_fireworks", "on_nonfinite")
    state = load_file(tmp_path / "fox-step00000001-state" / "adapter.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    # Its log is whole: TensorBoard's writer holds back what it is not made to write.
    (log,) = (tmp_path / "logs").iterdir()
    lines = (log / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]
    events = EventAccumulator(str(log))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/current")] == [1]
    resumed = anima_pipe("train", **given, resume="latest", on_nonfinite="skip").ok()
    assert "3 steps passed over" in resumed.said


def test_fp16_trains_an_adapter_in_fp32_with_a_loss_scale_that_its_state_keeps(cached, tmp_path):
    given = {**cached, "output_dir": tmp_path, "mixed_precision": "fp16", "save_state": True}
    ended = anima_pipe("train", **given, max_train_steps=2).ok()
    assert "passed over" not in ended.said
    held = torch.load(tmp_path / "fox-state" / "optimizer.pt", weights_only=True)
    assert (held["scaler"]["scale"], held["scaler"]["_growth_tracker"]) == (65536, 2)
    weights = load_file(tmp_path / "fox.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}

    # So high that the next gradient is none.
    held["scaler"]["scale"] = 2.0**40
    torch.save(held, tmp_path / "fox-state" / "optimizer.pt")
    summary = tmp_path / "summary.json"
    resumed = anima_pipe("train", summary, **given, max_train_steps=3, resume="latest").ok()
    assert "step 3: loss " in resumed.said
    lowered = "fp16's loss scale lowered from 1.09951e+12 to 5.49756e+11, on "
    assert lowered in resumed.said
    assert "1 step passed over" in resumed.said
    assert resumed.summary is not None
    assert resumed.summary["skipped_steps"] == 1
    assert resumed.summary["final_loss"] is None
    after = load_file(tmp_path / "fox.safetensors")
    assert _same(weights, after)
    held = torch.load(tmp_path / "fox-state" / "optimizer.pt", weights_only=True)
    assert (held["scaler"]["scale"], held["scaler"]["_growth_tracker"]) == (2.0**39, 0)
