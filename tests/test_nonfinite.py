"""Losses that are no numbers: the run stops before they do harm, or passes over their steps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from commands import anima_pipe, assert_one_error
from golden_model import golden_transformer
from safetensors.torch import load_file

from anima_pipe.adapters import Adapter, create_adapter
from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.plan import EMPTY_CAPTION, Plan, PlannedSample
from anima_pipe.model import TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import Moment, TextCondition
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trainer import NonFiniteError, Trainer, TrainerConfig, start_accelerate

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
    """Remembers every moment, and the adapter's weights at each."""

    reads_weights = False

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.moments: list[Moment] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def due(self, moment: Moment) -> bool:
        return moment.step >= 0

    def at(self, moment: Moment) -> None:
        self.moments.append(moment)
        self.weights.append({n: t.clone() for n, t in self.adapter.state_dict().items()})


def trainer_of(
    cache: Cache, *, skips: bool, steps: int = 6, accumulation: int = 1
) -> tuple[Trainer, Watcher]:
    transformer = golden_transformer("a").requires_grad_(requires_grad=False)
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
    ]
    watcher = Watcher(adapter)
    trainer = Trainer(
        start_accelerate("no", cpu=True),
        TextConditionedTransformer(transformer),
        optimizer,
        create_schedule(optimizer, ScheduleConfig(), steps),
        Batches(plan=Plan(samples=tuple(samples), seed=5), cache=cache, accumulation=accumulation),
        TrainerConfig(max_train_steps=steps, objective=ObjectiveConfig(), skips_non_finite=skips),
        [watcher],
    )
    return trainer, watcher


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
    assert end.skipped_steps == trainer.skipped_steps == 2
    assert len(trainer.losses) == 4
    assert all(map(math.isfinite, trainer.losses))
    for before, after in itertools.pairwise(range(7)):
        passed_over = math.isnan(watcher.moments[after].loss)
        same = all(
            torch.equal(watcher.weights[before][name], value)
            for name, value in watcher.weights[after].items()
        )
        assert same == passed_over


def test_an_adapter_past_mending_is_not_trained_for_ever(cache):
    trainer, _ = trainer_of(cache, skips=True, steps=100, accumulation=3)

    with pytest.raises(NonFiniteError, match="20th time in a row"):
        trainer.run()


def test_a_run_that_cannot_go_on_leaves_the_state_of_its_last_good_step(cached, tmp_path):
    """A rate this high overflows the weights' products in the second step."""
    given = {**cached, "output_dir": tmp_path, "learning_rate": 1e30, "max_train_steps": 4}
    ended = anima_pipe("train", **given)

    assert_one_error(ended, "step 2: loss", ".png", "on_nonfinite")
    state = load_file(tmp_path / "fox-step00000001-state" / "adapter.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    resumed = anima_pipe("train", **given, resume="latest", on_nonfinite="skip").ok()
    assert "3 steps passed over" in resumed.said
