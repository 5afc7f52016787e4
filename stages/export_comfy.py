"""Stage 5: write what was trained as inference programs load it, and verify what was written.

Reads   an adapter file of any style; with --merge a full checkpoint besides; or a checkpoint
Writes  one .safetensors file, ComfyUI's style unless told otherwise; a checkpoint for diffusers is
        a folder
Costs   seconds; baking takes as long as copying the checkpoint, and memory for one tensor
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved

if TYPE_CHECKING:
    from anima_pipe.runs.exporting import ExportSummary


def run(options: Resolved) -> ExportSummary:
    """Write the file and compare it with what was trained."""
    from anima_pipe.kohya.exporting import export_settings
    from anima_pipe.runs.exporting import export_adapter

    return export_adapter(export_settings(options))


command = stage_command("export-comfy", run, __doc__)

if __name__ == "__main__":
    command()
