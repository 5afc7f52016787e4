"""A run that writes what inference programs load, and verifies what was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from anima_pipe.export.adapter import Export, convert_adapter
from anima_pipe.export.bake import Baked, bake_adapter
from anima_pipe.export.checkpoint import Converted, convert_checkpoint, is_checkpoint
from anima_pipe.runs.settings.exporting import BakeSettings, ExportSettings
from anima_pipe.runtime import say

READERS: Final = {
    "comfy": "ComfyUI",
    "diffusers": "diffusers",
    "kohya": "sd-scripts and ComfyUI",
}
"""Who makes the same of a style."""

CHECKPOINT_READERS: Final = {
    "comfy": "ComfyUI/models/diffusion_models",
    "diffusers": "diffusers, as a pipeline's transformer and text_conditioner",
    "kohya": "sd-scripts and ComfyUI",
}
"""Who reads a checkpoint of a style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSummary:
    """What was written, and how it was checked."""

    output: str
    keys: int
    """Tensors in the file."""
    verified: bool
    """The file, applied by ComfyUI's published rules, changes the weights as the adapter does; of a
    checkpoint that was written anew, every number is what it was."""
    largest_difference: float
    """Of all layers, relative to the largest change of the layer; of a checkpoint, to the largest
    weight of the layer."""


def export_adapter(settings: ExportSettings | BakeSettings) -> ExportSummary:
    """Write an adapter's file, a checkpoint with it in its weights, or a trained checkpoint anew.

    A file gets its name when it is verified: until then there is none.

    Raises:
        CheckpointError: A file cannot be read, an adapter and a checkpoint are of two models, or
            what was written fails its verification.
        ConfigError: The style cannot express something, or the output is the checkpoint itself.
        OutputError: The output cannot be written.
    """
    if isinstance(settings, ExportSettings) and is_checkpoint(settings.adapter):
        converted = _converted(settings)
        return ExportSummary(
            output=str(converted.path), keys=converted.keys, verified=True, largest_difference=0.0
        )
    written = _baked(settings) if isinstance(settings, BakeSettings) else _exported(settings)
    return ExportSummary(
        output=str(written.path),
        keys=written.keys,
        verified=True,
        largest_difference=written.largest_difference,
    )


def _converted(settings: ExportSettings) -> Converted:
    """Write a checkpoint anew, and say so."""
    converted = convert_checkpoint(
        settings.adapter,
        settings.output,
        style=settings.style,
        dtype=settings.dtype,
        drop_norms=settings.drop_norms,
        command="export-comfy",
    )
    reader = CHECKPOINT_READERS[settings.style]
    say(f"exported  {converted.path}: {converted.keys} tensors, for {reader}; read back, equal")
    return converted


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
