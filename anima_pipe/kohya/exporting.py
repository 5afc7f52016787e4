"""From resolved options to the settings of an export."""

from __future__ import annotations

from pathlib import Path

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runs.settings.exporting import BakeSettings, ExportSettings
from anima_pipe.runtime import torch_dtype


def export_settings(options: Resolved) -> ExportSettings | BakeSettings:
    """Return what export-comfy is to write: with merge a checkpoint, else the adapter's file."""
    precision: str | None = options.value("save_precision")
    dtype = torch_dtype(precision) if precision else None
    checkpoint: Path | None = options.value("merge")
    if checkpoint:
        return BakeSettings(
            adapter=options.value("input"),
            checkpoint=checkpoint,
            output=options.value("output"),
            strength=options.value("merge_strength"),
            dtype=dtype,
            allow_unmatched=options.value("allow_unmatched"),
        )
    return ExportSettings(
        adapter=options.value("input"),
        output=options.value("output"),
        style=options.value("save_format"),
        dtype=dtype,
        drop_norms=options.value("drop_norms"),
        allow_unmatched=options.value("allow_unmatched"),
    )
