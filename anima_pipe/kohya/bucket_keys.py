"""The keys of dataset.toml that say into which shapes pictures are cropped."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from anima_pipe.buckets import BucketRules
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.config_file import KeyPath
from anima_pipe.kohya.dataset_tables import Levels, Reading, first_value, named

OF_BUCKETS: Final = (
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)
"""Keys that say nothing where pictures are cropped to one shape."""

LATENT_STEP: Final = 16
"""Pixels per token of the transformer: 8 by the VAE, 2 by the patches."""


def bucket_rules(reading: Reading, path: KeyPath, levels: Levels) -> BucketRules | None:
    """Return a dataset's rules; what is wrong with them goes to the findings."""
    if first_value("resolution", levels) is None:
        remedy = "add resolution = 1024 to [general] or [[datasets]], or set it as an option"
        reading.object_to(path, "resolution is required", remedy)
        return None
    try:
        rules = BucketRules(
            **{rule.name: first_value(rule.name, levels) for rule in fields(BucketRules)}
        )
    except ConfigError as error:
        reading.object_to(path, error.problem, error.remedy)
        return None
    if not rules.enable_bucket:
        _warn_of_idle_bucket_rules(reading, path, levels)
    if rules.enable_bucket and rules.bucket_reso_steps % LATENT_STEP:
        remedy = f"use a multiple of {LATENT_STEP}, such as 64"
        reading.object_to(path, f"bucket_reso_steps is {rules.bucket_reso_steps}", remedy)
    elif not rules.enable_bucket and any(side % LATENT_STEP for side in rules.resolution):
        width, height = rules.resolution
        remedy = f"use multiples of {LATENT_STEP}, or set enable_bucket = true"
        reading.object_to(path, f"resolution {width}x{height} does not fit the model", remedy)
    return rules


def _warn_of_idle_bucket_rules(reading: Reading, path: KeyPath, levels: Levels) -> None:
    """Name what is set of buckets although all pictures are cropped to one shape."""
    for name in OF_BUCKETS:
        value = first_value(name, levels)
        if value != first_value(name, ()):
            own = named((*path, name), levels)
            reading.warnings.append(f"{own} = {value} has no effect without enable_bucket")
