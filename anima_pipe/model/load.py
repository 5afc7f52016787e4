"""From a checkpoint file to a transformer that holds exactly what was in the file, or an error."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from anima_pipe.errors import CheckpointError
from anima_pipe.model.anima import AnimaTransformer
from anima_pipe.model.config import TransformerConfig, config_from_shapes
from anima_pipe.weight_files import (
    BYTES_PER_NUMBER,
    StoredTensor,
    check_names,
    copy_tensors,
    read_header,
)
from anima_pipe.weight_kinds import TRANSFORMER, wrong_kind

WANTED = "an Anima transformer"
PREFIXES = ("net.", "model.diffusion_model.", "diffusion_model.", "")
"""What stands before the names: by the author's trainer, by ComfyUI (two ways), or nothing."""

HARMLESS_EXTRAS = re.compile(
    r"^pos_embedder\."  # tables that follow from the sizes
    r"|^llm_adapter\.rotary_emb\.inv_freq$"  # likewise
    r"|^accum_"  # counters of Cosmos' trainer
    r"|(^|\.)_extra_state$"  # of its layers, empty
)
"""Tensors in released files that say nothing about the model; matched without prefix."""

OTHER_PARTS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.")
"""What else is in a whole ComfyUI checkpoint, beside `model.diffusion_model.`."""

_QUANTISED = re.compile(
    r"\.comfy_quant$|(^|\.)scaled_fp8$|\.(weight|input)_scale(_2)?$|\.scale_(weight|input)$"
    r"|\.(absmax|quant_map|quant_state\..*|qweight|qzeros)$"
)


class _Checkpoint(NamedTuple):
    """A file that has been found to hold a whole transformer, and how it fits the model."""

    path: Path
    tensors: dict[str, StoredTensor]
    """By the name of the parameter."""
    skeleton: AnimaTransformer
    """Without memory: on the meta device."""


def load_transformer(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> AnimaTransformer:
    """Load a transformer from a safetensors file, each weight once into its dtype and device.

    Memory grows by the size of the model in `dtype` and a chunk of the file.

    Args:
        path: A checkpoint of Anima: any number of blocks, any of the known prefixes.
        dtype: Of the weights: float32, bfloat16 or float16.
        device: Where the weights are wanted.

    Raises:
        CheckpointError: The file is not a whole Anima transformer, and what it is instead.
    """
    checkpoint = _examine(Path(path))
    model = checkpoint.skeleton.to(dtype).to_empty(device=device)
    copy_tensors(checkpoint.path, checkpoint.tensors, dict(model.named_parameters()))
    return model


def read_transformer_config(path: str | Path) -> TransformerConfig:
    """Read the sizes of a transformer from its file's header, after all checks of loading it.

    Raises:
        CheckpointError: As `load_transformer`.
    """
    return _examine(Path(path)).skeleton.config


def _examine(path: Path) -> _Checkpoint:
    stored = read_header(path)
    tensors = _transformer_tensors(path, stored)
    _refuse_quantised(path, tensors)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        config = config_from_shapes(shapes)
    except KeyError as missing:
        raise CheckpointError(f"{path} lacks {missing.args[0]}", _GIVE_RELEASE) from missing
    except ValueError as error:
        raise CheckpointError(f"{path} is no Anima transformer: {error}", _GIVE_RELEASE) from error
    with torch.device("meta"):
        skeleton = AnimaTransformer(config)
    wanted = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}
    check_names(path, WANTED, _GIVE_RELEASE, expected=wanted, found=shapes)
    return _Checkpoint(path, {name: tensors[name] for name in wanted}, skeleton)


def _transformer_tensors(path: Path, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the transformer's tensors by their names without prefix, harmless extras left out."""
    prefix = _find_prefix(path, stored)
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if not (prefix and name.startswith(OTHER_PARTS))
    }
    if not any(name.startswith("llm_adapter.") for name in tensors):
        raise CheckpointError(
            f"{path} has no text adapter (llm_adapter.*): a Cosmos-Predict2 transformer, not Anima",
            _GIVE_RELEASE,
        )
    return {name: tensor for name, tensor in tensors.items() if not HARMLESS_EXTRAS.search(name)}


def _find_prefix(path: Path, names: Collection[str]) -> str:
    for prefix in PREFIXES:
        # Two names, for a file may lack either; a foreign model has neither.
        own = (f"{prefix}x_embedder.proj.1.weight", f"{prefix}blocks.0.self_attn.q_norm.weight")
        if any(name in names for name in own):
            return prefix
    raise wrong_kind(path, WANTED, TRANSFORMER, names, _GIVE_RELEASE)


def _refuse_quantised(path: Path, tensors: dict[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in BYTES_PER_NUMBER or _QUANTISED.search(name):
            raise CheckpointError(
                f"{path} is quantised: it holds {name} as {tensor.dtype}",
                "Give the bf16 or fp32 file of the same model.",
            )


_GIVE_RELEASE = "Give a whole Anima transformer, such as anima-base-v1.0.safetensors."
