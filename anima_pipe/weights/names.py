"""What files call the tensors of the transformer, and what else is in such files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from anima_pipe.errors import CheckpointError
from anima_pipe.weights.files import BYTES_PER_NUMBER, StoredTensor

PREFIXES: Final = ("net.", "model.diffusion_model.", "diffusion_model.", "")
"""What stands before the names: by the author's trainer, by ComfyUI (two ways), or nothing."""

RELEASED_PREFIX: Final = PREFIXES[0]
"""What checkpoints are written with: the release has it, Kohya's scripts write it."""

HARMLESS_EXTRAS: Final = re.compile(
    r"^pos_embedder\."  # tables that follow from the sizes
    r"|^llm_adapter\.rotary_emb\.inv_freq$"  # likewise
    r"|^accum_"  # counters of Cosmos' trainer
    r"|(^|\.)_extra_state$"  # of its layers, empty
)
"""Tensors in released files that say nothing about the model; matched without prefix."""

QUANTISED: Final = re.compile(
    r"\.comfy_quant$|(^|\.)scaled_fp8$|\.(weight|input)_scale(_2)?$|\.scale_(weight|input)$"
    r"|\.(absmax|quant_map|quant_state\..*|qweight|qzeros)$"
)
"""Tensors beside weights that are kept in another form."""


def usable(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a file, by names without prefix, but for harmless extras.

    Raises:
        CheckpointError: The file is quantised.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not HARMLESS_EXTRAS.search(name)}
    for name, tensor in kept.items():
        if tensor.dtype not in BYTES_PER_NUMBER or QUANTISED.search(name):
            raise CheckpointError(
                f"{path} is quantised: it holds {name} as {tensor.dtype}",
                "Give the bf16 or fp32 file of the same model.",
            )
    return kept
