"""The facts that a state records of its run: everything that changes the mathematics."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe import __version__
from anima_pipe.dataset.batches import Batches
from anima_pipe.hooks.train_state import ANY_LENGTH, LENGTH
from anima_pipe.optimizing.optimizers import find_optimizer
from anima_pipe.runs.facts import DIGEST_LETTERS, each, short_digest
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.ways import way_of
from anima_pipe.shards.folders import Identity

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OF_SCHEDULE: Final = {
    "kind": "lr_scheduler",
    "warmup": "lr_warmup_steps",
    "decay": "lr_decay_steps",
    "num_cycles": "lr_scheduler_num_cycles",
    "power": "lr_scheduler_power",
    "min_lr_ratio": "lr_scheduler_min_lr_ratio",
    "timescale": "lr_scheduler_timescale",
    "class_name": "lr_scheduler_type",
    "arguments": "lr_scheduler_args",
}
"""What states call the fields of a schedule."""


def made_with(
    settings: TrainSettings, seed: int, batches: Batches, total_steps: int
) -> dict[str, str]:
    """Return the facts that two runs must share for one to go on from the other's state.

    Args:
        settings: Of the run.
        seed: That it is trained with.
        batches: Its supply of data.
        total_steps: Its length, which matters where the learning rate or a token warmup follows it.
    """
    model, adapter = settings.model, settings.adapter
    schedule = settings.schedule
    shares = [sample for sample in batches.plan.samples if 0 < sample.warmup_length < 1]
    follows_length = schedule.follows_length or bool(shares)
    facts: dict[str, object] = {
        "base": short_digest(model.transformer),
        **_text_adapter(model.llm_adapter),
        "base_weights": [(short_digest(path), strength) for path, strength in model.base_weights],
        "dataset": batches.plan.digest(),
        **way_of(settings).facts(),
        "optimizer_type": settings.optimizer.optimizer_type.lower(),
        **each("optimizer_args", settings.optimizer.optimizer_args),
        "learning_rate": settings.learning_rate,
        **{f"{part.name}_lr": part.rate for part in adapter.part_rates},
        **{f"lr_scheduler.{fact}": getattr(schedule, name) for fact, name in OF_SCHEDULE.items()},
        LENGTH: total_steps if follows_length else ANY_LENGTH,
        "max_grad_norm": settings.max_grad_norm,
        **_fields("objective", settings.objective),
        "mixed_precision": model.mixed_precision,
        "full_bf16": adapter.full_bf16,
        "fp8_base": model.fp8_base,
        "gradient_checkpointing": model.gradient_checkpointing,
        "batches_per_step": batches.window_size,
        "ema_decay": settings.ema_decay,
        "seed": seed,
        "vae": _encoder(batches.cache.latents.identity),
        "text_encoder": _encoder(batches.cache.text.identity),
        **_versions(settings.optimizer.optimizer_type),
    }
    return {name: str(value) for name, value in facts.items()}


def changes_rates(names: Iterable[str]) -> bool:
    """Tell whether runs that differ in these facts have different learning rates."""
    # network_args hold rates too: norm_lr, network_reg_lrs, loraplus_lr_ratio.
    known = {"learning_rate", "network_args", "max_train_steps", "lr_scheduler"}
    return any(name.partition(".")[0] in known or name.endswith("_lr") for name in names)


def changes_arguments(names: Iterable[str]) -> bool:
    """Tell whether runs that differ in these facts have different optimizer arguments."""
    return any(name.startswith("optimizer_args.") for name in names)


def changes_optimizer(names: Iterable[str]) -> bool:
    """Tell whether the optimizer's state is of no use to a run that differs in these facts."""
    return bool({"optimizer_type", "full_bf16"} & set(names))


def _fields(name: str, settings: DataclassInstance) -> dict[str, object]:
    """Return the fields of settings by name.field; those of nested settings too."""
    facts: dict[str, object] = {}
    for field in fields(settings):
        place, value = f"{name}.{field.name}", getattr(settings, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            facts |= _fields(place, value)
        else:
            facts[place] = value
    return facts


def _text_adapter(path: Path | None) -> dict[str, object]:
    """Return the hash of the text adapter's own file; nothing where it is in the base's."""
    return {"llm_adapter_path": short_digest(path)} if path else {}


def _encoder(identity: Identity | None) -> str:
    """Return which encoder filled a cache, and the dtype that the cache stores."""
    return f"{identity.fingerprint[:DIGEST_LETTERS]}-{identity.dtype}" if identity else "none"


def _versions(optimizer: str) -> dict[str, object]:
    """Return the versions of the packages that compute."""
    packages = {"anima-pipe", "torch", find_optimizer(optimizer).package}
    versions: dict[str, object] = {}
    for package in sorted(packages):
        with suppress(PackageNotFoundError):
            versions[package] = version(package).partition("+")[0]
    return {**versions, "anima-pipe": __version__}
