"""A run that writes an adapter as inference programs load it, and verifies what was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from anima_pipe.export.adapter import Export, convert_adapter
from anima_pipe.export.bake import Baked, bake_adapter
from anima_pipe.runs.settings.exporting import BakeSettings, ExportSettings
from anima_pipe.runtime import say

READERS: Final = {
    "comfy": "ComfyUI",
    "diffusers": "diffusers",
    "kohya": "sd-scripts and ComfyUI",
}
"""Who makes the same of a style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was written, and how it was checked."""

    output: str
    keys: int
    """Tensors in the file."""
    verified: bool
    """The file, applied by ComfyUI's published rules, changes the weights as the adapter does."""
    largest_difference: float
    """Of all layers, relative to the largest change of the layer; of a checkpoint, to the largest
    weight of the layer."""


def export_adapter(settings: ExportSettings | BakeSettings) -> ExportSummary:
    """Write an adapter's file, or a checkpoint with the adapter in its weights, and verify it.

    A file gets its name when it is verified: until then there is none.

    Raises:
        CheckpointError: A file cannot be read, an adapter and a checkpoint are of two models, or
            what was written fails its verification.
        ConfigError: The style cannot express something, or the output is the checkpoint itself.
        OutputError: The output cannot be written.
    """
    written = _baked(settings) if isinstance(settings, BakeSettings) else _exported(settings)
    return ExportSummary(
        output=str(written.path),
        keys=written.keys,
        verified=True,
        largest_difference=written.largest_difference,
    )


def _exported(settings: ExportSettings) -> Export:
    """Write the adapter's file, and say so."""
    export = convert_adapter(
        settings.adapter,
        settings.output,
        style=settings.style,
        dtype=settings.dtype,
        drop_norms=settings.drop_norms,
        allow_unmatched=settings.allow_unmatched,
        command="export-comfy",
    )
    reader = "ComfyUI alone" if export.unread_norms else READERS[settings.style]
    say(
        f"exported  {export.path}: {export.keys} tensors, for {reader}; "
        f"largest difference from what was trained {export.largest_difference:.1e}"
    )
    return export


def _baked(settings: BakeSettings) -> Baked:
    """Write the checkpoint, and say so."""
    baked = bake_adapter(
        settings.adapter,
        settings.checkpoint,
        settings.output,
        strength=settings.strength,
        dtype=settings.dtype,
        allow_unmatched=settings.allow_unmatched,
    )
    say(
        f"baked  {baked.path}: {baked.changed} of {baked.keys} tensors changed; largest difference "
        f"from what ComfyUI makes of them {baked.largest_difference:.1e}"
    )
    return baked
