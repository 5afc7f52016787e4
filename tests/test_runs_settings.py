"""Settings of a training: their defaults beside the options', and those that no run can have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import pytest
import torch
from commands import MODEL
from training_calls import assert_refused, into

from anima_pipe import runs
from anima_pipe.demo import DEMO_QWEN, DEMO_T5_TOKENIZER, DEMO_TRANSFORMER, DEMO_VAE
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.training import train_settings
from anima_pipe.runs.settings import FIELDS

OTHER_DEFAULTS: Final = {
    "AdapterSettings.network_dim": "Kohya's 4 is too few; 16 is usual for this model",
    "AdapterSettings.network_alpha": "None, the rank: another rank trains no faster for that alone",
    "AlarmConfig.stops": "a flag in place of the words warn and raise",
    "DataSettings.tokenizer_sources": "a library fetches nothing unasked",
    "LogSettings.kinds": "all of them, where an option's word stands for some",
    "BucketRules.enable_bucket": "pictures of another shape keep it, unless told otherwise",
    "SigmaConfig.highest": "1, where an option that is not given leaves that open",
}
"""Fields with another default than the option that says the same, and why."""

OTHER_BY_COMMAND: Final = {
    "data.tokenizer_sources": OTHER_DEFAULTS["DataSettings.tokenizer_sources"],
    "adapter.network_dim": OTHER_DEFAULTS["AdapterSettings.network_dim"],
    "adapter.network_alpha": OTHER_DEFAULTS["AdapterSettings.network_alpha"],
    "adapter.network_args": "an option's default is written out; it is that of the argument",
    "logs.told": "the options, for people to read",
    "metadata.facts": "what Kohya's files say of its options",
    "metadata.spec": "the title, which the run knows too",
}
"""What differs in a run of which nothing is said; why."""


# Beside the options


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


# What cannot be


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

    assert_refused(write, problem)


def test_what_the_settings_hold_is_refused_by_the_same_words() -> None:
    buckets = runs.BucketRules(resolution=(128, 128), min_bucket_reso=64)
    subset = runs.SubsetConfig(image_dir=Path("pictures"))
    assert_refused(
        lambda: runs.DatasetConfig(subsets=(), buckets=buckets), "a dataset has no subsets"
    )
    assert_refused(
        lambda: runs.DatasetConfig(subsets=(subset,), buckets=buckets, batch_size=0),
        "batch_size is 0",
    )
    assert_refused(lambda: replace(subset, num_repeats=0), "num_repeats is 0")
    assert_refused(lambda: replace(subset, loss_weight=-1.0), "loss_weight is -1")
    assert_refused(lambda: replace(subset, validation_split=1.5), "validation_split is 1.5")
    assert_refused(
        lambda: runs.PreviewSettings(prompts=(), vae=DEMO_VAE), "previews have no prompts"
    )
    assert_refused(lambda: runs.AlarmConfig(memory_share=95.0), "memory_share is 95")
    assert_refused(lambda: runs.AlarmConfig(loss_ratio=0.0), "loss_ratio is 0")


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

    assert_refused(
        lambda: runs.train(into(tmp_path / "out", settings, data=data, **changes)), problem
    )

    assert list(tmp_path.iterdir()) == []


def test_a_number_may_be_larger_than_any_float():
    assert (
        runs.SaveConfig(folder=Path(), name="fox", every_n_steps=10**400).every_n_steps == 10**400
    )
    with pytest.raises(runs.PipeError, match="save_every_n_steps is -1000"):
        runs.SaveConfig(folder=Path(), name="fox", every_n_steps=-(10**400))
