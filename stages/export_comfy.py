"""Stage 5: write the adapter as inference programs load it, and verify what was written.

Reads   an adapter file of any style; with --merge a full checkpoint besides
Writes  one .safetensors file; ComfyUI's style unless told otherwise
Costs   seconds; baking takes as long as copying the checkpoint, and memory for one tensor
"""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import say

READERS = {"comfy": "ComfyUI", "diffusers": "diffusers", "kohya": "sd-scripts and ComfyUI"}
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


def run(options: Resolved) -> ExportSummary:
    """Write the file and compare it with what was trained."""
    if options.value("merge"):
        return bake(options)
    from anima_pipe.export.adapter import export_adapter
    from anima_pipe.runtime import torch_dtype

    style: str = options.value("save_format")
    precision: str | None = options.value("save_precision")
    export = export_adapter(
        options.value("input"),
        options.value("output"),
        style=style,
        dtype=torch_dtype(precision) if precision else None,
        drop_norms=options.value("drop_norms"),
        allow_unmatched=options.value("allow_unmatched"),
        command="export-comfy",
    )
    reader = "ComfyUI alone" if export.unread_norms else READERS[style]
    say(
        f"exported  {export.path}: {export.keys} tensors, for {reader}; "
        f"largest difference from what was trained {export.largest_difference:.1e}"
    )
    return ExportSummary(
        output=str(export.path),
        keys=export.keys,
        verified=True,
        largest_difference=export.largest_difference,
    )


def bake(options: Resolved) -> ExportSummary:
    """Write a checkpoint with the adapter in its weights, checked against ComfyUI's rules."""
    from anima_pipe.export.bake import bake_adapter
    from anima_pipe.runtime import torch_dtype

    precision: str | None = options.value("save_precision")
    baked = bake_adapter(
        options.value("input"),
        options.value("merge"),
        options.value("output"),
        strength=options.value("merge_strength"),
        dtype=torch_dtype(precision) if precision else None,
        allow_unmatched=options.value("allow_unmatched"),
    )
    say(
        f"baked  {baked.path}: {baked.changed} of {baked.keys} tensors changed; largest difference "
        f"from what ComfyUI makes of them {baked.largest_difference:.1e}"
    )
    return ExportSummary(
        output=str(baked.path),
        keys=baked.keys,
        verified=True,
        largest_difference=baked.largest_difference,
    )


command = stage_command("export-comfy", run, __doc__)

if __name__ == "__main__":
    command()
