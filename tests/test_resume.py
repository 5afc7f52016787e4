"""A run that was stopped and resumed ends with the bits of one that never stopped."""

from __future__ import annotations

import itertools
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from golden_model import golden_transformer

from anima_pipe.adapters import Adapter, create_adapter, save_adapter
from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.hooks.ema import Ema
from anima_pipe.hooks.state_resuming import resume
from anima_pipe.hooks.state_saving import StateSaver
from anima_pipe.hooks.train_state import (
    DESCRIPTION,
    OPTIMIZER_FILE,
    RunParts,
    StateConfig,
    latest_state,
)
from anima_pipe.model import TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Moment, TextCondition
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trainer import StopRequest, Trainer, TrainerConfig, prepared, start_accelerate

STEPS, STOP = 7, 3
COUNT = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    generator = torch.Generator().manual_seed(3)
    width = golden_transformer("a").config.llm_adapter.source_width
    with LatentWriter(folder, "a" * 32, "fp16", "vae") as latents:
        for number in range(COUNT):
            latents.add(f"{number:032x}", torch.randn(16, 8, 8, generator=generator), {})
    with TextWriter(folder, "b" * 32, "fp16", "qwen") as texts:
        texts.add(EMPTY_CAPTION, TextCondition(torch.zeros(0, width), torch.ones(1).int()), {})
        for number in range(2 * COUNT):
            hidden = torch.randn(3 + number, width, generator=generator)
            texts.add(f"{number:031x}f", TextCondition(hidden, torch.tensor([5, 1]).int()), {})
    return open_cache(folder)


def plan() -> Plan:
    samples = [
        PlannedSample(
            name=str(number),
            latents=(f"{number:032x}",),
            texts=(f"{number:031x}f", f"{number + COUNT:031x}f"),
            group=(0, 64, 64),
            batch_size=2,
            repeats=1,
            dropout_rate=0.2,
            dropout_every_n_epochs=0,
        )
        for number in range(COUNT)
    ]
    return Plan(samples=tuple(samples), seed=5)


class Run:
    """A small run, made afresh: what a program holds between its start and its end."""

    def __init__(
        self,
        cache: Cache,
        folder: Path,
        *,
        kind: str = "lora",
        dtype: torch.dtype = torch.float32,
        precision: str = "no",
        optimizer: str = "AdamW",
        accumulation: int = 1,
        stop_after: int | None = None,
        fails_after: int | None = None,
        watched: bool = True,
    ) -> None:
        transformer = golden_transformer("a").to(dtype).requires_grad_(requires_grad=False)
        dropouts = {"dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1}
        self.adapter: Adapter = create_adapter(kind, transformer, network_dim=4, **dropouts)
        groups = [
            ParameterGroup(name=group.name, parameters=group.parameters, learning_rate=1e-2)
            for group in self.adapter.groups()
        ]
        built = create_optimizer(groups, OptimizerConfig(optimizer_type=optimizer))
        fixed = "ScheduleFree" in optimizer
        schedule = create_schedule(
            built, ScheduleConfig(lr_scheduler="constant" if fixed else "cosine"), STEPS
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = start_accelerate(precision, cpu=True)
        scaler = {"scaler": accelerator.scaler} if accelerator.scaler else {}
        self.parts = RunParts(
            trained=self.adapter,
            stateful={"optimizer": built, "schedule": schedule, **scaler},
            made_with={"seed": "5", "optimizer_type": optimizer},
        )
        self.states = StateSaver(
            self.parts, StateConfig(folder=folder, name="run", every_n_steps=2, keep_steps=3)
        )
        stop = StopRequest()
        module, prepared_optimizer = prepared(
            accelerator, TextConditionedTransformer(transformer), built
        )
        self.trainer = Trainer(
            accelerator=accelerator,
            module=module,
            optimizer=prepared_optimizer,
            schedule=schedule,
            batches=Batches(plan=plan(), cache=cache, accumulation=accumulation),
            config=TrainerConfig(
                max_train_steps=STEPS, objective=ObjectiveConfig(), seed=5, dtype=dtype
            ),
            hooks=(
                [Disturbance(), Failing(fails_after), self.states, Stopping(stop, stop_after)]
                if watched
                else []
            ),
            stop=stop,
        )


class Stopping:
    """A hook that asks the run to stop, so that the step of that number is the last one."""

    reads_weights = False

    def __init__(self, stop: StopRequest, after: int | None) -> None:
        self.stop = stop
        self.after = after

    def due(self, moment: Moment) -> bool:
        return moment.step + 1 == self.after

    def at(self, moment: Moment) -> None:  # noqa: ARG002 - whatever the moment
        self.stop.ask()


class Failing:
    """A hook of which something goes wrong behind a step."""

    reads_weights = False

    def __init__(self, after: int | None) -> None:
        self.after = after

    def due(self, moment: Moment) -> bool:
        return moment.step == self.after

    def at(self, moment: Moment) -> None:
        raise OSError(f"no picture at step {moment.step}")


class Disturbance:
    """A hook like a preview: it reads the weights and draws from the global generator."""

    reads_weights = True

    def due(self, moment: Moment) -> bool:
        return moment.step % 2 == 1

    def at(self, moment: Moment) -> None:
        torch.manual_seed(moment.step)
        torch.randn(100)


@pytest.fixture(autouse=True)
def accelerate_left_as_it_was() -> Iterator[None]:
    """accelerate keeps one precision per process, and other tests expect to choose theirs."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


SETTINGS = {
    "lora": {},
    "lokr": {"kind": "lokr"},
    "bf16": {"dtype": torch.bfloat16},
    # The scale of the loss is lowered in the first steps, and the adapter is fp32.
    "fp16": {"dtype": torch.float16, "precision": "fp16"},
    "accumulation": {"accumulation": 2},
    "8 bit": {"optimizer": "AdamW8bit"},
    "schedule-free": {"optimizer": "RAdamScheduleFree"},
    "schedule-free AdamW": {"optimizer": "AdamWScheduleFree"},
    "Prodigy": {"optimizer": "Prodigy"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_resumed_run_ends_with_the_bits_of_one_in_one_go(cache, tmp_path, settings):
    whole = Run(cache, tmp_path / "whole", **settings)
    whole.trainer.run()

    first = Run(cache, tmp_path / "parts", stop_after=STOP, **settings)
    end = first.trainer.run()
    assert end.step == STOP
    assert end.stopping

    second = Run(cache, tmp_path / "parts", **settings)
    done = resume(latest_state(tmp_path / "parts", "run"), second.parts)
    assert done == STOP
    second.trainer.run(done)

    assert first.trainer.tally.losses + second.trainer.tally.losses == whole.trainer.tally.losses
    files = [
        save_adapter(run.adapter, tmp_path / f"{name}.safetensors").read_bytes()
        for name, run in (("whole", whole), ("second", second))
    ]
    assert files[0] == files[1]


def test_a_run_that_a_hook_broke_off_goes_on_from_its_last_step_to_the_same_bits(cache, tmp_path):
    whole = Run(cache, tmp_path / "whole")
    whole.trainer.run()

    broken = Run(cache, tmp_path / "parts", fails_after=STOP)
    with pytest.raises(OSError, match="no picture at step 3"):
        broken.trainer.run()

    resumed = Run(cache, tmp_path / "parts")
    done = resume(latest_state(tmp_path / "parts", "run"), resumed.parts)
    assert done == STOP
    resumed.trainer.run(done)
    for name, tensor in whole.adapter.state_dict().items():
        assert torch.equal(resumed.adapter.state_dict()[name], tensor)


def test_a_run_that_broke_off_amid_a_change_of_the_weights_leaves_no_state_of_it(cache, tmp_path):
    run = Run(cache, tmp_path)
    steps = itertools.count(1)

    def fail(*_: object) -> None:
        if next(steps) == 2:
            raise RuntimeError("the card is lost")

    run.trainer.optimizer.optimizer.register_step_post_hook(fail)
    with pytest.raises(RuntimeError, match="the card is lost"):
        run.trainer.run()

    assert not [*tmp_path.iterdir()]


def test_an_error_to_end_with_is_raised_behind_the_next_step_whose_state_is_saved(cache, tmp_path):
    run = Run(cache, tmp_path)
    first = OSError("the first disk is full")
    run.trainer.stop.end_with(first)
    run.trainer.stop.end_with(OSError("so is the second"))

    with pytest.raises(OSError, match="the first disk is full"):
        run.trainer.run()

    assert [path.name for path in tmp_path.iterdir()] == ["run-step00000001-state"]


def test_looking_at_the_weights_does_not_change_the_run(cache, tmp_path):
    watched = Run(cache, tmp_path, optimizer="RAdamScheduleFree")
    alone = Run(cache, tmp_path, optimizer="RAdamScheduleFree", watched=False)
    watched.trainer.run()
    alone.trainer.run()
    assert watched.trainer.tally.losses == alone.trainer.tally.losses


def test_states_that_are_too_old_are_removed(cache, tmp_path):
    Run(cache, tmp_path).trainer.run()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["run-step00000004-state", "run-step00000006-state"]


def test_a_state_made_with_something_else_is_refused_unless_allowed(cache, tmp_path):
    Run(cache, tmp_path, stop_after=STOP).trainer.run()
    other = Run(cache, tmp_path)
    other.parts.made_with["optimizer_type"] = "SGD"
    with pytest.raises(ConfigError, match="optimizer_type: AdamW then, SGD now"):
        resume(latest_state(tmp_path, "run"), other.parts)
    assert resume(latest_state(tmp_path, "run"), other.parts, ["optimizer_type"]) == STOP


def test_an_average_that_the_state_does_not_have_begins_with_its_weights(cache, tmp_path):
    Run(cache, tmp_path, stop_after=STOP).trainer.run()
    other = Run(cache, tmp_path)
    ema = Ema(other.adapter, 0.9)
    untrained = {name: value.clone() for name, value in ema.averages.items()}
    parts = replace(other.parts, stateful={**other.parts.stateful, "ema": ema})
    resume(latest_state(tmp_path, "run"), parts)
    weights = other.adapter.state_dict()
    assert all(torch.equal(ema.averages[name], value) for name, value in weights.items())
    assert not all(torch.equal(untrained[name], value) for name, value in weights.items())


def _lose(name: str) -> Callable[[Path], object]:
    return lambda state: (state / name).unlink()


def _cut(name: str) -> Callable[[Path], object]:
    return lambda state: (state / name).write_bytes((state / name).read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        damage(name)
        for damage in (_lose, _cut)
        for name in (Adapter.state_file, OPTIMIZER_FILE, DESCRIPTION)
    ],
)
def test_a_damaged_state_is_named(cache, tmp_path, damage):
    Run(cache, tmp_path, stop_after=STOP).trainer.run()
    state = latest_state(tmp_path, "run")
    damage(state)
    with pytest.raises(CheckpointError, match=state.name):
        resume(state, Run(cache, tmp_path).parts)


def moved_to(device: str, state: Path) -> None:
    """Let a state's tensors say that they were saved on a device of that name."""
    path = state / OPTIMIZER_FILE
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.infolist()}
    # A text in a pickle: X, its length in four bytes, its letters.
    old, new = (b"X" + struct.pack("<I", len(name)) + name for name in (b"cpu", device.encode()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for entry, content in files.items():
            is_pickle = entry.filename.endswith("data.pkl")
            assert old in content or not is_pickle
            moved = content.replace(old, new) if is_pickle else content
            archive.writestr(entry.filename, moved)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_state_of_another_device_is_resumed_here_to_the_same_bits(cache, tmp_path, settings):
    Run(cache, tmp_path, stop_after=STOP, **settings).trainer.run()
    state = latest_state(tmp_path, "run")
    ended: list[dict[str, torch.Tensor]] = []
    for device in ("cpu", "cuda:7"):
        moved_to(device, state)
        run = Run(cache, tmp_path / "rest", **settings)
        run.trainer.run(resume(state, run.parts))
        ended.append(run.adapter.state_dict())
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


def test_no_state_to_go_on_from_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no state of run"):
        latest_state(tmp_path, "run")


def test_a_state_of_another_adapter_is_refused(cache, tmp_path):
    Run(cache, tmp_path, stop_after=STOP).trainer.run()
    with pytest.raises(CheckpointError, match="tensors of the adapter"):
        resume(latest_state(tmp_path, "run"), Run(cache, tmp_path, kind="lokr").parts)
