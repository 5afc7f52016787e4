"""Of every save: does it know its trigger, and nothing else?"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import anima_pipe, demo_pictures, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_calls import into, trained

from anima_pipe import demo, runs
from anima_pipe.adapters import load_adapter
from anima_pipe.dataset.batches import pad_texts
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.probes import UNRELATED, Probes, choose_probes
from anima_pipe.dataset.survey import survey_pictures
from anima_pipe.dataset.visits import Visit
from anima_pipe.hooks.leakage_meter import LeakageMeter, ProbeVisit
from anima_pipe.hooks.validation import ModelInUse
from anima_pipe.model import TextConditionedTransformer, load_transformer
from anima_pipe.objective.leakage import (
    Changes,
    LeakageFigures,
    PictureErrors,
    leakage_figures,
)
from anima_pipe.records import TextCondition
from anima_pipe.runs.leakage import prepare_leakage
from anima_pipe.runtime import derive_seed
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache, text_key

CURVES = ("learned", "bound", "changed", "leaked")
NAMES = {f"leakage/{curve}" for curve in CURVES}
SIGMAS = (0.9, 0.7, 0.5)

Numbers = dict[str, float]


# The formula


def test_the_figures_are_shares_of_the_base_models_error():
    """Of two pictures, at two noise levels; the second has a trigger, and one prompt is unrelated.

    Mean errors are 2 and 1.5: learned 0.5 / 2. The second picture gains 1 with its trigger, and
    0.25 without: bound 0.75 / 2.
    """
    figures = leakage_figures(
        PictureErrors(
            captioned=torch.tensor([[1.0, 2], [2, 3]]), without=torch.tensor([[2.0, 4.0]])
        ),
        PictureErrors(
            captioned=torch.tensor([[1.0, 2], [1, 2]]), without=torch.tensor([[2.0, 3.5]])
        ),
        torch.tensor([False, True]),
        Changes(pictures=torch.tensor([[0.0, 1], [1, 2]]), unrelated=torch.tensor([[0.5, 0.3]])),
    )

    assert figures.learned == pytest.approx(0.25)
    assert figures.bound == pytest.approx(0.375)
    assert figures.changed == pytest.approx(0.5)
    assert figures.leaked == pytest.approx(0.2)
    assert figures.score == pytest.approx(0.25 * 0.6)


@given(seed=st.integers(0, 2**31), scale=st.floats(-1.0, 3.0))
def test_what_an_adapter_learned_is_what_of_its_change_points_to_the_target(
    seed: int, scale: float
):
    """The gain is 2 <d, v* - v_0> - |d|^2; all of the missing velocity is 1, nothing is 0."""
    rng = torch.Generator().manual_seed(seed)
    target, base, stray = torch.randn(3, 2, 4, 9, generator=rng, dtype=torch.float64)
    changed = base + scale * (target - base) + 0.1 * stray
    change = changed - base

    def error(velocity: torch.Tensor) -> torch.Tensor:
        return (target - velocity).square().mean(-1)

    none = torch.zeros(0, 4)
    figures = leakage_figures(
        PictureErrors(captioned=error(base), without=none),
        PictureErrors(captioned=error(changed), without=none),
        torch.zeros(2, dtype=torch.bool),
        Changes(pictures=change.square().mean(-1), unrelated=change.square().mean(-1)),
    )
    missing = target - base
    gain = 2 * (change * missing).sum() - change.square().sum()
    assert figures.learned == pytest.approx((gain / missing.square().sum()).item())
    assert figures.bound is None
    assert figures.leaked == figures.changed
    assert figures.score <= 0, "it does the same to everything"


@given(
    learned=st.floats(0.01, 1),
    changed=st.floats(0.01, 1),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_of_saves_that_learned_as_much_the_one_that_leaks_less_is_better(
    learned: float, changed: float, shares: tuple[float, float]
):
    less, more = (
        LeakageFigures(learned=learned, bound=None, changed=changed, leaked=changed * share).score
        for share in sorted(shares)
    )
    assert 0 <= more <= less <= learned


@pytest.mark.parametrize("leaked", [0.0, 0.1, 0.3])
def test_a_save_that_is_worse_than_the_base_never_scores(leaked: float):
    assert LeakageFigures(learned=-0.2, bound=None, changed=0.2, leaked=leaked).score <= 0


# What is measured


@pytest.fixture(scope="module")
def measured(
    settings: runs.TrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> runs.TrainSettings:
    """Three steps, every save measured, with caches of its own."""
    folder = tmp_path_factory.mktemp("leakage")
    data = settings.data
    assert data.latents is not None
    assert data.text is not None
    shutil.copytree(data.cache.folder, folder / "cache")
    cache = replace(data.cache, folder=folder / "cache")
    latents, text = replace(data.latents, cache=cache), replace(data.text, cache=cache)
    return replace(
        settings,
        data=replace(data, cache=cache, latents=latents, text=text),
        leakage=runs.LeakageConfig(),
        learning_rate=7e-3,  # high, so that later saves leak more than they learn
    )


def logged(folder: Path) -> dict[int, Numbers]:
    """The numbers of this measure in a run's metrics.jsonl, by step."""
    (file,) = folder.glob("*/metrics.jsonl")
    steps: dict[int, Numbers] = {}
    for line in map(json.loads, file.read_text().splitlines()):
        found = {name: n for name, n in line.items() if name.startswith("leakage")}
        if found:
            steps.setdefault(line["step"], {}).update(found)
    return steps


def saving(folder: Path, settings: runs.TrainSettings, **changes: object) -> runs.TrainSettings:
    """Settings of a run of five steps that saves after each, with a log, into a folder."""
    return into(
        folder,
        settings,
        **{
            "length": runs.LengthSettings(max_train_steps=5),
            "save": replace(settings.save, every_n_steps=1),
            "logs": runs.LogSettings(folder=folder / "logs"),
            **changes,
        },
    )


@pytest.fixture(scope="module")
def run(
    measured: runs.TrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, runs.TrainSummary]:
    folder = tmp_path_factory.mktemp("run")
    states = runs.StateSettings(with_saves=True)
    return folder, runs.train(saving(folder, measured, states=states))


def test_an_adapter_that_trains_learns_and_leaks(run: tuple[Path, runs.TrainSummary]):
    steps = logged(run[0] / "logs")

    assert list(steps) == [1, 2, 3, 4, 5]
    assert all(numbers.keys() == NAMES for numbers in steps.values())
    assert all(math.isfinite(number) for numbers in steps.values() for number in numbers.values())
    assert 0 < steps[1]["leakage/learned"] < steps[5]["leakage/learned"] < 1
    assert 0 < steps[1]["leakage/leaked"] < steps[5]["leakage/leaked"]


def test_the_figures_are_those_of_the_formula_computed_by_hand(
    measured: runs.TrainSettings, run: tuple[Path, runs.TrainSummary]
):
    folder, _ = run
    expected = ByHand(measured).figures(folder / "fox-step00000003.safetensors")

    found = logged(folder / "logs")[3]
    assert found == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}


class ByHand:
    """The measure written plainly, with a model of its own."""

    def __init__(self, settings: runs.TrainSettings) -> None:
        model = load_transformer(demo.DEMO_TRANSFORMER, dtype=torch.float32, device="cpu")
        self.module = TextConditionedTransformer(model)
        self.cache: Cache = open_cache(settings.data.cache.folder)
        pictures = find_pictures(settings.data.datasets)
        self.probes = choose_probes(pictures, runs.LeakageConfig()).pictures
        survey = survey_pictures(pictures, caption_variants=None)
        self.latents = {sample.picture.name: sample.latent_keys[0] for sample in survey.samples}

    def velocity(self, latents: torch.Tensor, sigma: float, text: str) -> torch.Tensor:
        padded = pad_texts([self.cache.text[text_key(text)]])
        with torch.no_grad():
            return self.module(
                latents, torch.tensor([sigma]), padded.qwen_hidden.float(), padded.t5_ids
            )

    def passes(self, texts: Sequence[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The velocity of each picture at each noise level, and its target."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for probe, text in zip(self.probes, texts, strict=True):
            key = self.latents[probe.picture.name]
            latent = self.cache.latents[key].float()[None]
            for sigma in SIGMAS:
                noise = drawn(latent.shape, key, sigma)
                noisy = (1 - sigma) * latent + sigma * noise
                found.append((self.velocity(noisy, sigma, text), noise - latent))
        return found

    def stops(self) -> list[tuple[torch.Tensor, float, str]]:
        """Where Euler steps of the model lead from noise, for each unrelated prompt."""
        shape = self.cache.latents[self.latents[self.probes[0].picture.name]][None].shape
        found: list[tuple[torch.Tensor, float, str]] = []
        for text in UNRELATED:
            latents, before = drawn(shape, text_key(text), 1.0), 1.0
            for sigma in SIGMAS:
                latents = latents + (sigma - before) * self.velocity(latents, before, text)
                found.append((latents, sigma, text))
                before = sigma
        return found

    def figures(self, file: Path) -> Numbers:
        captioned = [probe.caption for probe in self.probes]
        without = [probe.without or "" for probe in self.probes]
        stops = self.stops()

        def looks() -> tuple[list[tuple[torch.Tensor, torch.Tensor]], ...]:
            unrelated = [(self.velocity(*stop), stop[0]) for stop in stops]
            return self.passes(captioned), self.passes(without), unrelated

        base = looks()
        load_adapter(file, self.module.transformer)
        adapted = looks()
        errors, remaining, errors_without, remaining_without = (
            mean((velocity - target for velocity, target in found))
            for found in (base[0], adapted[0], base[1], adapted[1])
        )
        learned = (errors - remaining) / errors
        changes = [
            mean(now - then for (now, _), (then, _) in zip(after, before, strict=True))
            for after, before in ((adapted[0], base[0]), (adapted[2], base[2]))
        ]
        return {
            "leakage/learned": learned,
            "leakage/bound": learned - (errors_without - remaining_without) / errors,
            "leakage/changed": changes[0] / errors,
            "leakage/leaked": changes[1] / errors,
        }


def drawn(shape: Sequence[int], name: str, sigma: float) -> torch.Tensor:
    seed = derive_seed("leakage", name, sigma)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean(differences: Iterable[torch.Tensor]) -> float:
    squares = [difference.double().square().mean().item() for difference in differences]
    return sum(squares) / len(squares)


class AtStart:
    """Measures the adapter that a run begins with."""

    def __init__(self, training: runs.Training, probes: Probes) -> None:
        self.measure = prepare_leakage(training, probes)
        self.figures: LeakageFigures | None = None

    def due(self, moment: runs.Moment) -> bool:
        return moment.step == 0

    def at(self, moment: runs.Moment) -> None:
        del moment
        assert self.measure is not None
        self.figures = self.measure.meter.figures()


def at_start(
    folder: Path, settings: runs.TrainSettings, adapter: runs.AdapterSettings
) -> LeakageFigures:
    """Measure the adapter that a run would begin with."""
    probes = choose_probes(find_pictures(settings.data.datasets), runs.LeakageConfig())
    found: list[AtStart] = []

    def watching(training: runs.Training) -> list[AtStart]:
        found.append(AtStart(training, probes))
        return found

    length = runs.LengthSettings(max_train_steps=1)
    run = into(folder, settings, length=length, adapter=adapter, leakage=None)
    runs.train(run, watching)
    assert found[0].figures is not None
    return found[0].figures


TRIGGER = 7
"""The token of a trigger, in texts of a cache made by hand."""


class Drawing(torch.nn.Module):
    """A model that knows nothing, and an adapter on it that knows one picture by heart.

    Args:
        picture: Float[16, H, W].
        token: Without which in the text the adapter does nothing; None: it always acts.
    """

    def __init__(self, picture: torch.Tensor, token: int | None) -> None:
        super().__init__()
        self.picture, self.token, self.on = picture, token, True

    def forward(
        self,
        latents: torch.Tensor,
        sigmas: torch.Tensor,
        _qwen: torch.Tensor,
        ids: torch.Tensor,
        *_masks: torch.Tensor,
    ) -> torch.Tensor:
        """Return the whole velocity from the picture to the noise in the latents, or zeros."""
        if not self.on or (self.token is not None and self.token not in ids):
            return torch.zeros_like(latents)
        sigma = sigmas.view(-1, 1, 1, 1)
        return (latents - (1 - sigma) * self.picture) / sigma - self.picture

    @contextmanager
    def disabled(self) -> Generator[None]:
        """Switch the adapter off."""
        self.on = False
        yield
        self.on = True


@pytest.mark.parametrize("token", [TRIGGER, None])
def test_what_comes_only_when_it_is_called_is_bound_to_the_trigger(
    tmp_path: Path, token: int | None
):
    """All of the picture is learned either way; what always comes leaks into the other prompt."""
    picture = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(1))
    with LatentWriter(tmp_path, "a" * 32, "fp32", "vae") as latents:
        latents.add("1" * 32, picture, {})
    with TextWriter(tmp_path, "b" * 32, "fp32", "qwen") as texts:
        for key, ids in (("c" * 32, [TRIGGER, 5, 1]), ("d" * 32, [5, 1]), ("e" * 32, [6, 1])):
            texts.add(key, TextCondition(torch.ones(2, 8), torch.tensor(ids).int()), {})
    drawing = Drawing(picture, token)
    captioned = Visit(
        name="fox.png", latent="1" * 32, text="c" * 32, loss_weight=1, sigma_offset=0, mask=None
    )
    meter = LeakageMeter(
        ModelInUse(module=drawing, device=torch.device("cpu"), dtype=torch.float32),
        drawing,
        [ProbeVisit(captioned=captioned, without=replace(captioned, text="d" * 32))],
        ["e" * 32],
        open_cache(tmp_path),
    )

    figures = meter.figures()
    assert figures.learned == pytest.approx(1, abs=1e-5)
    assert figures.bound == pytest.approx(0 if token is None else 1, abs=1e-5)
    assert figures.changed == pytest.approx(1, abs=1e-5)
    assert figures.leaked > 0.3 if token is None else figures.leaked == 0
    assert meter.figures() == figures


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [("lora", {}), ("lora", {"dora_wd": True}), ("lokr", {}), ("lora", {"pissa": True})],
)
def test_an_adapter_that_changes_nothing_learned_nothing_and_leaks_nothing(
    measured: runs.TrainSettings, tmp_path: Path, kind: str, arguments: dict[str, bool]
):
    fresh = runs.AdapterSettings(kind=kind, network_dim=2, network_args=arguments)

    figures = at_start(tmp_path, measured, fresh)
    assert (figures.learned, figures.bound, figures.changed, figures.leaked) == (0, 0, 0, 0)


def test_an_adapter_of_random_numbers_leaks_and_has_learned_nothing(
    measured: runs.TrainSettings, run: tuple[Path, runs.TrainSummary], tmp_path: Path
):
    rng = torch.Generator().manual_seed(3)
    tensors = load_file(run[0] / "fox.safetensors")
    random = {
        name: torch.randn(tensor.shape, generator=rng) if tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }
    save_file(random, tmp_path / "random.safetensors")
    adapter = runs.AdapterSettings(network_dim=4, network_weights=tmp_path / "random.safetensors")

    figures = at_start(tmp_path, measured, adapter)
    assert figures.leaked > 0.1
    assert figures.changed > 0.1
    assert figures.learned < 0.1 * figures.changed


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.9},
        {"optimizer": runs.OptimizerConfig(optimizer_type="RAdamScheduleFree")},
    ],
)
def test_the_weights_that_are_saved_are_what_is_measured(
    measured: runs.TrainSettings, tmp_path: Path, changes: dict[str, object]
):
    logs = runs.LogSettings(folder=tmp_path / "logs")
    runs.train(into(tmp_path / "run", measured, logs=logs, **changes))

    end = "_ema" if "ema_decay" in changes else ""
    file = tmp_path / "run" / f"fox{end.replace('_', '-')}.safetensors"
    adapter = runs.AdapterSettings(network_dim=4, network_weights=file)
    figures = at_start(tmp_path / "again", measured, adapter)
    found = logged(tmp_path / "logs")[3]
    assert found[f"leakage{end}/learned"] == pytest.approx(figures.learned, rel=1e-4)
    assert found[f"leakage{end}/leaked"] == pytest.approx(figures.leaked, rel=1e-4)
    assert found["leakage/learned"] != pytest.approx(figures.learned, rel=1e-4) or not end


def test_measuring_changes_nothing_in_the_adapter(
    measured: runs.TrainSettings, run: tuple[Path, runs.TrainSummary], tmp_path: Path
):
    dropping = runs.AdapterSettings(network_dim=4, network_args={"dropout": 0.2})
    with_it = runs.train(saving(tmp_path / "with", measured, adapter=dropping))
    without = runs.train(saving(tmp_path / "without", measured, adapter=dropping, leakage=None))

    assert trained(with_it) == trained(without)
    assert logged(tmp_path / "without" / "logs") == {}


def test_a_run_that_is_resumed_goes_on_with_the_same_figures_and_names_the_same_save(
    measured: runs.TrainSettings, run: tuple[Path, runs.TrainSummary], tmp_path: Path
):
    folder, summary = run
    (copy := tmp_path / "copy").mkdir()
    for step in (1, 2, 3):
        shutil.copy(folder / f"fox-step{step:08d}.safetensors", copy)
    states = runs.StateSettings(resume=folder / "fox-step00000003-state")
    resumed = runs.train(saving(copy, measured, states=states))

    whole = logged(folder / "logs")
    assert logged(copy / "logs") == {step: whole[step] for step in (4, 5)}
    assert summary.best_save is not None
    assert resumed.best_save == str(copy / Path(summary.best_save).name)


def score(numbers: Mapping[str, float]) -> float:
    """As docs/logs.md says it."""
    leaks = numbers["leakage/leaked"] / numbers["leakage/changed"]
    return numbers["leakage/learned"] * (1 - leaks)


def test_the_save_that_learned_most_while_leaking_least_is_named_at_the_end(
    run: tuple[Path, runs.TrainSummary],
):
    folder, summary = run
    steps = logged(folder / "logs")
    best = max(steps, key=lambda step: score(steps[step]))

    assert 1 < best < 5, "neither the first that learned anything nor the last"
    assert summary.best_save == str(folder / f"fox-step{best:08d}.safetensors")


def test_a_save_that_is_gone_is_not_named(measured: runs.TrainSettings, tmp_path: Path):
    """Of those of the last step alone: two names of one adapter, so that none is better."""
    save = replace(measured.save, every_n_steps=1, keep_steps=0)
    summary = runs.train(saving(tmp_path, measured, save=save))

    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "fox-step00000005.safetensors",
        "fox.safetensors",
    }
    assert summary.best_save is None


def test_of_one_save_none_is_named(measured: runs.TrainSettings, tmp_path: Path):
    summary = runs.train(into(tmp_path, measured, logs=runs.LogSettings(kinds=())))

    assert summary.best_save is None


def test_a_subject_without_a_trigger_is_measured_without_that_curve(
    measured: runs.TrainSettings, tmp_path: Path
):
    config = runs.LeakageConfig(trigger=("nowhere to be found",))
    runs.train(saving(tmp_path, measured, leakage=config))

    assert logged(tmp_path / "logs")[5].keys() == NAMES - {"leakage/bound"}


def test_a_model_whose_own_weights_train_is_not_measured(
    measured: runs.TrainSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    length = runs.LengthSettings(max_train_steps=1)
    summary = runs.train(saving(tmp_path, measured, adapter=runs.NoAdapter(), length=length))

    assert "leakage   not measured: the model's own weights train" in caplog.text
    assert summary.steps == 1
    assert logged(tmp_path / "logs") == {}


# As a user meets it


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Options that name pictures, caches of their own, and prompts to draw."""
    folder = tmp_path_factory.mktemp("typed")
    pictures = demo_pictures(folder / "pictures")
    prompts = folder / "prompts.txt"
    prompts.write_text("a fox --w 64 --h 64 --s 1 --l 1\n")
    dataset = write_dataset(folder / "dataset.toml", pictures)
    named: dict[str, object] = {"dataset_config": dataset, "cache_dir": folder / "cache"}
    anima_pipe("cache-latents", **named).ok()
    anima_pipe("encode-text", **named).ok()
    return {**named, "sample_prompts": prompts}


def test_every_save_has_three_figures_in_the_log(typed: dict[str, object], tmp_path: Path):
    """And what they are to be seen against; with previews without being asked for."""
    values = {"save_every_n_steps": 1, "max_train_steps": 3, "log_with": "tensorboard"}
    values |= {"logging_dir": tmp_path / "logs", "output_dir": tmp_path}
    ended = anima_pipe("train", tmp_path / "summary.json", **typed, **values).ok()

    steps = logged(tmp_path / "logs")
    assert {step: numbers.keys() for step, numbers in steps.items()} == dict.fromkeys(
        (1, 2, 3), NAMES
    )
    (log,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(log))
    events.Reload()
    for name in NAMES:
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == {step: pytest.approx(n[name], rel=1e-5) for step, n in steps.items()}
    assert "trigger   hoshimaru" in ended.said
    assert "leakage   by 6 pictures of those that are trained on" in ended.said
    assert ended.said.count("leakage at step") == 3
    assert ended.summary is not None
    assert f"best save {ended.summary['best_save']}, of 3" in ended.said


def test_nothing_is_measured_where_it_is_not_wanted(typed: dict[str, object], tmp_path: Path):
    drawn = anima_pipe("train", output_dir=tmp_path, measure_leakage=False, **typed).ok()
    assert "leakage  " not in drawn.said

    plain = {**typed, "sample_prompts": None}
    assert "leakage  " not in anima_pipe("train", output_dir=tmp_path, **plain).ok().said
    asked = anima_pipe("train", output_dir=tmp_path, measure_leakage=True, **plain).ok()
    assert "leakage at step 2: learned" in asked.said


def test_texts_that_are_not_cached_leave_it_off_and_the_run_goes_on(
    typed: dict[str, object], tmp_path: Path
):
    """encode-text with the same options caches them."""
    named = {**typed, "cache_dir": tmp_path / "cache", "output_dir": tmp_path}
    of_cache = {name: named[name] for name in ("dataset_config", "cache_dir")}
    anima_pipe("cache-latents", **of_cache).ok()
    anima_pipe(
        "encode-text", **of_cache, sample_prompts=named["sample_prompts"], measure_leakage=False
    ).ok()
    without = anima_pipe("train", auto_cache=False, **named).ok()
    assert "leakage   not measured: the text cache lacks 12 of its 18 texts" in without.said
    assert "run `anima-pipe encode-text` with the same options" in without.said

    anima_pipe("encode-text", **of_cache, sample_prompts=named["sample_prompts"]).ok()
    then = anima_pipe("train", auto_cache=False, **named).ok()
    assert "leakage at step 2: learned" in then.said


def test_a_trigger_phrase_of_the_metadata_is_the_trigger(typed: dict[str, object], tmp_path: Path):
    phrase = r"star mark, spring \(season\)"
    ended = anima_pipe("train", output_dir=tmp_path, metadata_trigger_phrase=phrase, **typed).ok()

    assert "trigger   star mark, spring (season)\n" in ended.said


def test_pictures_held_out_are_what_is_looked_at(typed: dict[str, object], tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, validation_split=0.34, **typed).ok()

    assert "leakage   by 2 pictures held out" in ended.said
