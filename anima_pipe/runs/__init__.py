"""Runs as library calls: settings go in, a summary comes out, errors say what to do.

    from anima_pipe.runs import CacheLatentsSettings, cache_latents

A run logs what it does to the logger "anima_pipe". What a user can mend is raised as a `PipeError`,
whose `problem` and `remedy` are separate texts.

A name is imported on first use, so that nothing waits for torch that does not need it. No module
here has the name of a function that the package exports: once it was imported, the package's
attribute of that name would be the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anima_pipe.buckets import BucketRules as BucketRules
    from anima_pipe.dataset.cached import CachedDataset as CachedDataset
    from anima_pipe.dataset.config import DatasetConfig as DatasetConfig
    from anima_pipe.dataset.config import LeakageConfig as LeakageConfig
    from anima_pipe.dataset.config import SubsetConfig as SubsetConfig
    from anima_pipe.errors import PipeError as PipeError
    from anima_pipe.fill import CacheSettings as CacheSettings
    from anima_pipe.fill import LatentSettings as LatentSettings
    from anima_pipe.fill import TextSettings as TextSettings
    from anima_pipe.hooks.alarms import AlarmConfig as AlarmConfig
    from anima_pipe.hooks.saving import SaveConfig as SaveConfig
    from anima_pipe.hooks.train_state import latest_state as latest_state
    from anima_pipe.hooks.validation import ValidationConfig as ValidationConfig
    from anima_pipe.objective.flow_loss import LossConfig as LossConfig
    from anima_pipe.objective.flow_loss import ObjectiveConfig as ObjectiveConfig
    from anima_pipe.objective.sigmas import SigmaConfig as SigmaConfig
    from anima_pipe.optimizing.optimizers import OptimizerConfig as OptimizerConfig
    from anima_pipe.optimizing.schedules import ScheduleConfig as ScheduleConfig
    from anima_pipe.records import Moment as Moment
    from anima_pipe.records import PreviewPrompt as PreviewPrompt
    from anima_pipe.runs.base import load_base as load_base
    from anima_pipe.runs.exporting import ExportSummary as ExportSummary
    from anima_pipe.runs.exporting import export_adapter as export_adapter
    from anima_pipe.runs.latents import LatentSummary as LatentSummary
    from anima_pipe.runs.latents import cache_latents as cache_latents
    from anima_pipe.runs.prepare import Training as Training
    from anima_pipe.runs.settings.caching import CacheLatentsSettings as CacheLatentsSettings
    from anima_pipe.runs.settings.caching import EncodeTextSettings as EncodeTextSettings
    from anima_pipe.runs.settings.exporting import BakeSettings as BakeSettings
    from anima_pipe.runs.settings.exporting import ExportSettings as ExportSettings
    from anima_pipe.runs.settings.fetching import FetchTokenizerSettings as FetchTokenizerSettings
    from anima_pipe.runs.settings.trained import AdapterSettings as AdapterSettings
    from anima_pipe.runs.settings.trained import ModelSettings as ModelSettings
    from anima_pipe.runs.settings.trained import NoAdapter as NoAdapter
    from anima_pipe.runs.settings.training import DataSettings as DataSettings
    from anima_pipe.runs.settings.training import LengthSettings as LengthSettings
    from anima_pipe.runs.settings.training import LogSettings as LogSettings
    from anima_pipe.runs.settings.training import MetadataSettings as MetadataSettings
    from anima_pipe.runs.settings.training import PreviewSettings as PreviewSettings
    from anima_pipe.runs.settings.training import StateSettings as StateSettings
    from anima_pipe.runs.settings.training import TrainSettings as TrainSettings
    from anima_pipe.runs.texts import TextSummary as TextSummary
    from anima_pipe.runs.texts import encode_text as encode_text
    from anima_pipe.runs.tokenizer import TokenizerSummary as TokenizerSummary
    from anima_pipe.runs.tokenizer import fetch_tokenizer as fetch_tokenizer
    from anima_pipe.runs.training import TrainSummary as TrainSummary
    from anima_pipe.runs.training import train as train
    from anima_pipe.shards.places import open_place as open_place
    from anima_pipe.trained import PartRate as PartRate
    from anima_pipe.trainer import Hook as Hook
    from anima_pipe.trainer import StopRequest as StopRequest

NAMES: Final = {
    "anima_pipe.buckets": ("BucketRules",),
    "anima_pipe.dataset.cached": ("CachedDataset",),
    "anima_pipe.dataset.config": (
        "DatasetConfig",
        "LeakageConfig",
        "SubsetConfig",
    ),
    "anima_pipe.errors": ("PipeError",),
    "anima_pipe.fill": (
        "CacheSettings",
        "LatentSettings",
        "TextSettings",
    ),
    "anima_pipe.hooks.alarms": ("AlarmConfig",),
    "anima_pipe.hooks.saving": ("SaveConfig",),
    "anima_pipe.hooks.train_state": ("latest_state",),
    "anima_pipe.hooks.validation": ("ValidationConfig",),
    "anima_pipe.objective.flow_loss": (
        "LossConfig",
        "ObjectiveConfig",
    ),
    "anima_pipe.objective.sigmas": ("SigmaConfig",),
    "anima_pipe.optimizing.optimizers": ("OptimizerConfig",),
    "anima_pipe.optimizing.schedules": ("ScheduleConfig",),
    "anima_pipe.records": (
        "Moment",
        "PreviewPrompt",
    ),
    "anima_pipe.runs.base": ("load_base",),
    "anima_pipe.runs.exporting": (
        "ExportSummary",
        "export_adapter",
    ),
    "anima_pipe.runs.latents": (
        "LatentSummary",
        "cache_latents",
    ),
    "anima_pipe.runs.prepare": ("Training",),
    "anima_pipe.runs.settings.caching": (
        "CacheLatentsSettings",
        "EncodeTextSettings",
    ),
    "anima_pipe.runs.settings.exporting": (
        "BakeSettings",
        "ExportSettings",
    ),
    "anima_pipe.runs.settings.fetching": ("FetchTokenizerSettings",),
    "anima_pipe.runs.settings.trained": (
        "AdapterSettings",
        "ModelSettings",
        "NoAdapter",
    ),
    "anima_pipe.runs.settings.training": (
        "DataSettings",
        "LengthSettings",
        "LogSettings",
        "MetadataSettings",
        "PreviewSettings",
        "StateSettings",
        "TrainSettings",
    ),
    "anima_pipe.runs.texts": (
        "TextSummary",
        "encode_text",
    ),
    "anima_pipe.runs.tokenizer": (
        "TokenizerSummary",
        "fetch_tokenizer",
    ),
    "anima_pipe.runs.training": (
        "TrainSummary",
        "train",
    ),
    "anima_pipe.shards.places": ("open_place",),
    "anima_pipe.trained": ("PartRate",),
    "anima_pipe.trainer": (
        "Hook",
        "StopRequest",
    ),
}
"""The public names, by the modules that they come from."""

_HOMES: Final = {name: module for module, names in NAMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(_HOMES)
