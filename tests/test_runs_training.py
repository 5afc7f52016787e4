"""Training as a call of the library, on a few of the demo's pictures and its tiny model."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import pytest
import torch
from commands import BUCKETS, MODEL, anima_pipe, files_in, run_apart
from safetensors import safe_open
from safetensors.torch import load_file

from anima_pipe import runs
from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE
from anima_pipe.errors import ConfigError, PipeError
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.training import train_settings
from anima_pipe.runs.settings import FIELDS

STEPS: Final = 3

TRAINS: Final = """
import json, sys
from pathlib import Path

from anima_pipe import demo, runs

pictures, cache_folder, folder = map(Path, sys.argv[1:])
buckets = runs.BucketRules(
    resolution=(128, 128), min_bucket_reso=64, max_bucket_reso=256, bucket_reso_steps=32
)
subset = runs.SubsetConfig(image_dir=pictures)
cache = runs.CacheSettings(folder=cache_folder, device="cpu")
settings = runs.TrainSettings(
    data=runs.DataSettings(
        datasets=(runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=2),),
        cache=cache,
        latents=runs.LatentSettings(cache=cache, vae=demo.DEMO_VAE, workers=0),
        text=runs.TextSettings(
            cache=cache, qwen=demo.DEMO_QWEN, t5_tokenizer_dir=demo.DEMO_T5_TOKENIZER
        ),
    ),
    model=runs.ModelSettings(transformer=demo.DEMO_TRANSFORMER),
    adapter=runs.AdapterSettings(network_dim=4, network_alpha=1),
    save=runs.SaveConfig(folder=folder, name="fox"),
    learning_rate=2e-3,
    length=runs.LengthSettings(max_train_steps=2),
    logs=runs.LogSettings(kinds=()),
    seed=1,
    device="cpu",
)
summary = runs.train(settings)
print(json.dumps({"output": summary.output, "modules": sorted(sys.modules)}))
"""

COMMAND_LINE: Final = ("click", "stages", "anima_pipe.cli", "anima_pipe.kohya")

OTHER_DEFAULTS: Final = {
    "AdapterSettings.network_dim": "Kohya's 4 is too few; 16 is usual for this model",
    "AdapterSettings.network_alpha": "None, the rank: another rank trains no faster for that alone",
    "AlarmConfig.stops": "a flag in place of the words warn and raise",
    "BucketRules.enable_bucket": "pictures of another shape keep it, unless told otherwise",
    "SigmaConfig.highest": "1, where an option that is not given leaves that open",
}
"""Fields with another default than the option that says the same, and why."""

OTHER_BY_COMMAND: Final = {
    "data.tokenizer_sources": "whoever types a command means it, a library fetches nothing unasked",
    "adapter.network_dim": OTHER_DEFAULTS["AdapterSettings.network_dim"],
    "adapter.network_alpha": OTHER_DEFAULTS["AdapterSettings.network_alpha"],
    "adapter.network_args": "an option's default is written out; it is that of the argument",
    "logs.told": "the options, for people to read",
    "metadata.facts": "what Kohya's files say of its options",
    "metadata.spec": "the title, which the run knows too",
}
"""What differs in a run of which nothing is said; why."""


# Settings


@pytest.fixture(scope="module")
def settings(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.TrainSettings:
    """Ask for three steps on the processor, with caches that are complete; nothing is run in it."""
    folder = tmp_path_factory.mktemp("training")
    rules = {name: value for name, value in BUCKETS.items() if name != "batch_size"}
    buckets = runs.BucketRules(**{**rules, "resolution": (128, 128)})
    subset = runs.SubsetConfig(image_dir=pictures)
    datasets = (runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=2),)
    cache = runs.CacheSettings(folder=folder / "cache", device="cpu")
    latents = runs.LatentSettings(cache=cache, vae=DEMO_VAE, workers=0)
    text = runs.TextSettings(cache=cache, qwen=DEMO_QWEN, t5_tokenizer_dir=DEMO_T5_TOKENIZER)
    runs.cache_latents(runs.CacheLatentsSettings(datasets=datasets, latents=latents))
    runs.encode_text(runs.EncodeTextSettings(datasets=datasets, text=text))
    return runs.TrainSettings(
        data=runs.DataSettings(datasets=datasets, cache=cache, latents=latents, text=text),
        model=runs.ModelSettings(transformer=DEMO_TRANSFORMER),
        adapter=runs.AdapterSettings(network_dim=4),
        save=runs.SaveConfig(folder=folder / "nothing", name="fox"),
        learning_rate=2e-3,
        length=runs.LengthSettings(max_train_steps=STEPS),
        logs=runs.LogSettings(kinds=()),
        seed=1,
        device="cpu",
    )


def into(folder: Path, settings: runs.TrainSettings, **changes: Any) -> runs.TrainSettings:
    """Return settings that write into a folder, otherwise changed too."""
    changed = replace(settings, **changes)
    return replace(changed, save=replace(changed.save, folder=folder))


def trained(summary: runs.TrainSummary) -> bytes:
    """Return the file that a run ended with."""
    assert summary.output is not None
    return Path(summary.output).read_bytes()


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


# Beside the command line


def test_a_training_by_call_knows_no_command_line_and_trains_what_the_command_does(
    settings: runs.TrainSettings, dataset: Path, pictures: Path, tmp_path: Path
) -> None:
    cache = settings.data.cache.folder

    program = (sys.executable, "-c", TRAINS, pictures, cache, tmp_path / "called")
    told = json.loads(run_apart(*program).ok().printed)
    names = {"dataset_config": dataset, "cache_dir": cache, "output_dir": tmp_path / "typed"}
    anima_pipe("train", **names).ok()

    modules: list[str] = told["modules"]
    assert [m for m in modules if any(f"{m}.".startswith(f"{c}.") for c in COMMAND_LINE)] == []
    called, typed = Path(told["output"]), tmp_path / "typed" / "fox.safetensors"
    of_call, of_command = load_file(called), load_file(typed)
    assert of_call.keys() == of_command.keys()
    assert all(torch.equal(of_call[name], of_command[name]) for name in of_call)
    facts, others = metadata(called), metadata(typed)
    # A hash of all the facts, of which the command line knows more.
    both = (facts.keys() & others.keys()) - {"ss_session_id"}
    assert {name: facts[name] for name in both} == {name: others[name] for name in both}
    assert {"ss_seed", "ss_network_alpha", "ss_optimizer", "sshs_model_hash"} <= both


def settings_classes() -> Iterator[type]:
    """Yield the classes of settings that the library offers."""
    for name in dir(runs):
        if name.endswith(("Settings", "Config", "Rules")):
            yield getattr(runs, name)


def plain_default(field: Field[Any]) -> object:
    """Return a field's default; MISSING: it has none, or settings of its own."""
    if field.default is not MISSING:
        return field.default
    if field.default_factory is MISSING:
        return MISSING
    made = field.default_factory()
    return MISSING if is_dataclass(made) else made


def test_what_a_field_and_an_option_of_one_name_are_by_default_is_the_same() -> None:
    options = resolve("train", {}).defaults
    called = {place: name for name, place in FIELDS.items()}
    compared, differing = set[str](), set[str]()
    for of in settings_classes():
        for field in fields(of):
            place = f"{of.__name__}.{field.name}"
            name, default = called.get(place, field.name), plain_default(field)
            if name in options and default is not MISSING:
                compared.add(name)
                # An option that is not given is None, a field what changes nothing: 0, or empty.
                nothing = not default and options[name] is None
                if default != options[name] and not nothing:
                    differing.add(place)

    assert len(compared) > 30
    assert differing == OTHER_DEFAULTS.keys()


def differences(one: object, other: object, place: str = "") -> Iterator[str]:
    """Yield the places within settings where two of them differ, by the fields' names."""
    if not is_dataclass(one) or type(one) is not type(other):
        if one != other:
            yield place
        return
    for field in fields(one):
        inner = f"{place}.{field.name}" if place else field.name
        yield from differences(getattr(one, field.name), getattr(other, field.name), inner)


def test_a_run_of_which_nothing_is_said_is_the_same_by_call_and_by_command(
    settings: runs.TrainSettings, dataset: Path, tmp_path: Path
) -> None:
    names = {"dataset_config": dataset, "cache_dir": settings.data.cache.folder}
    saves = {"output_dir": tmp_path, "output_name": "fox"}
    by_command = train_settings(resolve("train", MODEL | names | saves))

    cache = runs.CacheSettings(folder=settings.data.cache.folder)
    by_call = runs.TrainSettings(
        data=runs.DataSettings(
            datasets=settings.data.datasets,
            cache=cache,
            latents=runs.LatentSettings(cache=cache, vae=DEMO_VAE),
            text=runs.TextSettings(cache=cache, qwen=DEMO_QWEN, t5_tokenizer_dir=DEMO_T5_TOKENIZER),
        ),
        model=runs.ModelSettings(transformer=DEMO_TRANSFORMER),
        save=runs.SaveConfig(folder=tmp_path, name="fox"),
        learning_rate=2e-6,
    )

    assert {*differences(by_command, by_call)} == OTHER_BY_COMMAND.keys()


# The caller's own hooks


class Watcher:
    """Notes when it is asked and acts, and what it finds then.

    Args:
        look: What is noted whenever it acts.
        due: Whether it acts.
    """

    def __init__(
        self,
        look: Callable[[], object] = lambda: None,
        due: Callable[[runs.Moment], bool] = lambda _moment: True,
    ) -> None:
        self.look, self.is_due = look, due
        self.asked: list[runs.Moment] = []
        self.seen: dict[int, object] = {}
        self.closed = 0

    def due(self, moment: runs.Moment) -> bool:
        self.asked.append(moment)
        return self.is_due(moment)

    def at(self, moment: runs.Moment) -> None:
        self.seen[moment.step] = self.look()

    def close(self) -> None:
        self.closed += 1


class Breaking(Watcher):
    """Raises behind a step."""

    def __init__(self, step: int) -> None:
        super().__init__(due=lambda moment: moment.step == step)

    def at(self, moment: runs.Moment) -> None:
        raise RuntimeError(f"broken at step {moment.step}")


def test_a_hook_of_ones_own_is_asked_before_the_first_step_and_behind_each(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    hook = Watcher(due=lambda moment: moment.step == 2)

    runs.train(into(tmp_path, settings), [hook])

    assert [moment.step for moment in hook.asked] == [0, 1, 2, 3]
    assert [moment.after_step for moment in hook.asked] == [False, True, True, True]
    assert [moment.is_last for moment in hook.asked] == [False, False, False, True]
    assert hook.seen.keys() == {2}
    assert hook.closed == 1


def test_a_hook_acts_once_what_its_step_saves_is_there(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    run = into(
        tmp_path,
        settings,
        save=replace(settings.save, every_n_steps=1),
        states=runs.StateSettings(with_saves=True, at_end=True),
    )
    hook = Watcher(lambda: {path.name for path in tmp_path.iterdir()})

    runs.train(run, [hook])

    saved = {
        step: {f"fox-step{step:08d}.safetensors", f"fox-step{step:08d}-state"} for step in (1, 2)
    }
    assert hook.seen[0] == set()
    assert hook.seen[1] == saved[1]
    assert hook.seen[2] == saved[1] | saved[2]
    assert {"fox.safetensors", "fox-state"} <= cast("set[str]", hook.seen[3])


def test_a_hook_that_raises_ends_the_run_with_its_error_and_the_state_saved(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    hook, breaking = Watcher(), Breaking(2)

    with pytest.raises(RuntimeError, match="broken at step 2"):
        runs.train(into(tmp_path, settings), [hook, breaking])

    assert (hook.closed, breaking.closed) == (1, 1)
    (state,) = tmp_path.iterdir()
    assert state.name == "fox-step00000002-state"
    # What is behind that state is trained as if nothing had happened.
    resumed = runs.train(
        into(tmp_path, settings, states=runs.StateSettings(resume=state)),
    )
    assert trained(resumed) == trained(runs.train(into(tmp_path / "whole", settings)))


class Weights(Watcher):
    """Looks at the weights of the adapter on a model."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__(self.weights, due=lambda moment: moment.is_last)
        self.base = base

    def weights(self) -> dict[str, torch.Tensor]:
        named = self.base.named_parameters()
        return {n: value.detach().clone() for n, value in named if n.endswith((".down", ".up"))}


class WeightsInTraining(Weights):
    """Is shown none but those that are trained."""

    reads_weights = False


def test_a_hook_sees_the_weights_that_are_saved_unless_it_reads_none(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(settings.model, "cpu")
    averaged, trains = Weights(base), WeightsInTraining(base)
    optimizer = runs.OptimizerConfig(optimizer_type="AdamWScheduleFree")

    runs.train(into(tmp_path, settings, optimizer=optimizer), [averaged, trains], base=base)

    file = load_file(tmp_path / "fox.safetensors")
    saved = sorted(float(value.norm()) for name, value in file.items() if ".lora_" in name)
    seen = averaged.seen[STEPS], trains.seen[STEPS]
    of_average, in_training = (
        sorted(float(value.norm()) for value in cast("dict[str, torch.Tensor]", found).values())
        for found in seen
    )
    assert of_average == pytest.approx(saved, rel=1e-6)
    assert in_training != pytest.approx(saved, rel=1e-3)


# Stopping


def test_a_run_in_a_thread_of_its_own_is_stopped_from_another_and_leaves_signals_alone(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    stop, stepped = runs.StopRequest(), threading.Event()
    hook = Watcher(lambda: stepped.set() or [signal.getsignal(number) for number in numbers])
    hook.is_due = lambda moment: moment.after_step
    run = into(tmp_path, settings, length=runs.LengthSettings(max_train_steps=10**6))
    ended: list[runs.TrainSummary] = []

    thread = threading.Thread(target=lambda: ended.append(runs.train(run, [hook], stop=stop)))
    thread.start()
    assert stepped.wait(300)
    stop.ask()
    thread.join(300)

    (summary,) = ended
    assert 1 <= summary.steps < 10**6
    assert summary.output is None
    assert summary.state_dir == str(tmp_path / f"fox-step{summary.steps:08d}-state")
    assert Path(summary.state_dir).is_dir()
    assert all(found == before for found in hook.seen.values())


# Several runs in one process


def test_runs_of_several_precisions_and_one_that_fails_leave_nothing_to_the_next(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    in_bf16 = replace(settings.model, mixed_precision="bf16")

    first = trained(runs.train(into(tmp_path / "1", settings)))
    halved = trained(runs.train(into(tmp_path / "2", settings, model=in_bf16)))
    with pytest.raises(RuntimeError, match="broken"):
        runs.train(into(tmp_path / "3", settings, model=in_bf16), [Breaking(1)])
    last = trained(runs.train(into(tmp_path / "4", settings)))

    assert last == first
    assert halved != first


def test_a_run_that_is_stopped_and_resumed_in_one_process_ends_with_the_same_bytes(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    stop = runs.StopRequest()
    asking = Watcher(stop.ask, due=lambda moment: moment.step == 1)

    stopped = runs.train(into(tmp_path, settings, seed=None), [asking], stop=stop)
    assert stopped.state_dir is not None
    state = runs.StateSettings(resume=Path(stopped.state_dir))
    # The seed was drawn, and is the state's.
    resumed = runs.train(into(tmp_path, settings, seed=None, states=state))

    seed = int(metadata(tmp_path / "fox.safetensors")["ss_seed"])
    assert (stopped.steps, resumed.steps) == (2, STEPS)
    assert trained(resumed) == trained(runs.train(into(tmp_path / "whole", settings, seed=seed)))


def adapters_on(model: torch.nn.Module) -> list[str]:
    return [name for name, _module in model.named_modules() if "delta" in name]


def test_a_shared_base_is_as_it_was_whatever_ends_a_run(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(settings.model, "cpu")
    untouched = {name: value.clone() for name, value in base.state_dict().items()}
    lokr = replace(settings, adapter=runs.AdapterSettings(kind="lokr", network_dim=4))
    alone = trained(runs.train(into(tmp_path / "alone", settings)))
    stop = runs.StopRequest()
    stop.ask()
    state = runs.train(into(tmp_path / "state", settings), stop=stop).state_dir
    assert state is not None
    nothing = {"include_patterns": "[r'nowhere']"}
    failing: tuple[tuple[str, dict[str, Any], list[runs.Hook]], ...] = (
        ("nowhere", {"adapter": runs.AdapterSettings(network_args=nothing)}, []),
        ("another run|was made with", {"states": runs.StateSettings(resume=Path(state))}, []),
        ("broken at step 1", {}, [Breaking(1)]),
    )

    runs.train(into(tmp_path / "lokr", lokr), base=base)
    assert adapters_on(base) == []
    for words, changes, hooks in failing:
        with pytest.raises(Exception, match=words):
            runs.train(into(tmp_path / words, lokr, **changes), hooks, base=base)
        assert adapters_on(base) == []

    assert trained(runs.train(into(tmp_path / "shared", settings), base=base)) == alone
    kept = base.state_dict()
    assert kept.keys() == untouched.keys()
    assert all(torch.equal(kept[name], value) for name, value in untouched.items())


def test_a_base_that_is_kept_otherwise_than_the_run_wants_is_refused(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    base = runs.load_base(replace(settings.model, mixed_precision="bf16"), "cpu")

    with pytest.raises(ConfigError) as raised:
        runs.train(into(tmp_path, settings), base=base)

    assert raised.value.problem == "the base is kept in torch.bfloat16, but mixed_precision is no"
    assert raised.value.remedy
    assert files_in(tmp_path) == set()


# What cannot be


def refused(make: Callable[[], object], *words: str) -> None:
    """Check that something is refused by an error with these words in its problem."""
    with pytest.raises(ConfigError) as raised:
        make()
    assert [word for word in words if word not in raised.value.problem] == []
    assert raised.value.remedy
    assert raised.value.remedy not in raised.value.problem


@pytest.mark.parametrize(
    ("part", "field", "value", "problem"),
    [
        ("data", "datasets", (), "datasets is empty"),
        ("data", "latents", None, "auto_cache fills the caches"),
        ("data", "text", None, "auto_cache fills the caches"),
        ("data", "caption_variants", 0, "caption_variants is 0"),
        ("data", "crop_variants", 0, "crop_variants is 0"),
        ("model", "mixed_precision", "fp32", "mixed_precision is 'fp32'"),
        ("adapter", "kind", "lora_anima", "unknown adapter kind 'lora_anima'"),
        ("adapter", "network_dim", 0, "network_dim is 0"),
        ("adapter", "network_alpha", -1.0, "network_alpha is -1"),
        ("adapter", "network_args", {"dropuot": 0.1}, "dropuot"),
        ("adapter", "scale_weight_norms", 0.0, "scale_weight_norms is 0"),
        ("adapter", "full_bf16", True, "full_bf16 is set, but mixed_precision is no"),
        ("length", "max_train_steps", -1, "max_train_steps is -1"),
        ("length", "max_train_epochs", 0, "max_train_epochs is 0"),
        ("length", "gradient_accumulation_steps", 0, "gradient_accumulation_steps is 0"),
        ("save", "name", "", "output_name is ''"),
        ("save", "name", "foxes/red", "output_name is 'foxes/red'"),
        ("save", "style", "comfyui", "unknown adapter style 'comfyui'"),
        ("save", "every_n_steps", 0, "save_every_n_steps is 0"),
        ("save", "keep_epochs", -1, "save_last_n_epochs is -1"),
        ("save", "dtype", torch.int8, "save_precision is torch.int8"),
        ("states", "every_minutes", 0.0, "save_state_every_minutes is 0"),
        ("states", "keep_steps", -1, "save_last_n_steps_state is -1"),
        ("logs", "kinds", ("tensorbord",), "log_with is 'tensorbord'"),
        ("validation", "every_n_epochs", 0, "validate_every_n_epochs is 0"),
        ("validation", "max_batches", -1, "max_validation_steps is -1"),
        ("schedule", "lr_scheduler", "cosinus", "unsupported lr_scheduler 'cosinus'"),
        ("schedule", "lr_warmup_steps", -1, "lr_warmup_steps is -1"),
        ("", "learning_rate", -1e-4, "learning_rate is -0.0001"),
        ("", "learning_rate", float("nan"), "learning_rate is nan"),
        ("", "max_grad_norm", 0.0, "max_grad_norm is 0"),
        ("", "on_nonfinite", "ignore", "on_nonfinite is 'ignore'"),
        ("", "ema_decay", 1.0, "ema_decay is 1"),
        ("", "save_n_epoch_ratio", 0, "save_n_epoch_ratio is 0"),
        ("", "seed", -1, "seed is -1"),
    ],
)
def test_settings_that_no_run_can_have_are_refused_when_they_are_written(
    settings: runs.TrainSettings, part: str, field: str, value: object, problem: str
) -> None:
    def write() -> object:
        if not part:
            return replace(settings, **cast("Any", {field: value}))
        changed = replace(getattr(settings, part), **{field: value})
        return replace(settings, **{part: changed})

    refused(write, problem)


def test_what_the_settings_hold_is_refused_by_the_same_words() -> None:
    buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
    subset = runs.SubsetConfig(image_dir=Path("pictures"))
    refused(lambda: runs.DatasetConfig(subsets=(), buckets=buckets), "a dataset has no subsets")
    refused(
        lambda: runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=0),
        "batch_size is 0",
    )
    refused(lambda: replace(subset, num_repeats=0), "num_repeats is 0")
    refused(lambda: replace(subset, loss_weight=-1.0), "loss_weight is -1")
    refused(lambda: replace(subset, validation_split=1.5), "validation_split is 1.5")
    refused(lambda: runs.PreviewSettings(prompts=(), vae=DEMO_VAE), "previews have no prompts")
    refused(lambda: runs.AlarmConfig(memory_share=95.0), "memory_share is 95")
    refused(lambda: runs.AlarmConfig(loss_ratio=0.0), "loss_ratio is 0")


SCHEDULE_FREE: Final = runs.OptimizerConfig(optimizer_type="AdamWScheduleFree")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"optimizer": runs.OptimizerConfig(optimizer_type="AdamWW")}, "optimizer_type 'AdamWW'"),
        ({"optimizer": SCHEDULE_FREE, "ema_decay": 0.9}, "ema_decay beside AdamWScheduleFree"),
        (
            {"optimizer": SCHEDULE_FREE, "schedule": runs.ScheduleConfig(lr_scheduler="cosine")},
            "AdamWScheduleFree takes no schedule, but lr_scheduler is cosine",
        ),
        (
            {"optimizer": runs.OptimizerConfig(optimizer_args={"betta": 1})},
            "optimizer_args do not fit AdamW: there is no argument betta",
        ),
        ({"schedule": runs.ScheduleConfig(lr_scheduler="adafactor")}, "lr_scheduler adafactor"),
        (
            {"adapter": runs.AdapterSettings(network_args={"include_patterns": "[r'nowhere']"})},
            "nowhere",
        ),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_encoded(
    settings: runs.TrainSettings, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    cache = runs.CacheSettings(folder=tmp_path / "cache", device="cpu")
    assert settings.data.latents is not None
    assert settings.data.text is not None
    latents, text = (
        replace(part, cache=cache) for part in (settings.data.latents, settings.data.text)
    )
    data = replace(settings.data, cache=cache, latents=latents, text=text)

    refused(lambda: runs.train(into(tmp_path / "out", settings, data=data, **changes)), problem)

    assert list(tmp_path.iterdir()) == []


def test_an_error_before_the_first_step_leaves_no_file_of_the_run(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    logs = runs.LogSettings(folder=tmp_path / "logs")
    nowhere = (replace(settings.data.datasets[0].subsets[0], image_dir=tmp_path / "nowhere"),)
    datasets = (replace(settings.data.datasets[0], subsets=nowhere),)
    failing: tuple[dict[str, Any], ...] = (
        {"model": replace(settings.model, transformer=tmp_path / "nowhere")},
        {"data": replace(settings.data, datasets=datasets)},
        {"adapter": runs.AdapterSettings(network_args={"include_patterns": "[r'nowhere']"})},
        {"states": runs.StateSettings(resume=tmp_path / "nowhere")},
        {"metadata": runs.MetadataSettings(thumbnail=str(tmp_path / "nowhere.png"))},
    )

    for changes in failing:
        with pytest.raises(PipeError, match="nowhere"):
            runs.train(into(tmp_path / "out", settings, logs=logs, **changes))
        assert files_in(tmp_path) == set()
        assert not (tmp_path / "logs").is_dir() or list((tmp_path / "logs").iterdir()) == []


def test_an_adapter_that_the_files_style_cannot_hold_begins_no_log(
    settings: runs.TrainSettings, tmp_path: Path
) -> None:
    logs = runs.LogSettings(folder=tmp_path / "logs")
    adapter = runs.AdapterSettings(kind="lokr", network_dim=4)
    save = replace(settings.save, style="diffusers")

    refused(
        lambda: runs.train(into(tmp_path, settings, adapter=adapter, save=save, logs=logs)),
        "diffusers",
    )

    assert files_in(tmp_path) == set()
