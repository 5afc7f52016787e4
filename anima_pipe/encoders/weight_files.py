"""Files of weights: mapped tensors by name, and errors that say which file it really is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from anima_pipe.errors import CheckpointError

# Pieces of tensor names that tell whose file it is, most telling first.
_KINDS = (
    ("lora_", "a LoRA"),
    ("lokr_", "a LoKr adapter"),
    ("hada_", "a LoHa adapter"),
    ("adaln_modulation", "the Anima or Cosmos transformer"),
    ("double_blocks.", "a Flux transformer"),
    ("model.diffusion_model.", "a whole Stable Diffusion checkpoint or another transformer"),
    ("encoder.down.0.block", "the VAE of Stable Diffusion or Flux"),
    ("encoder.down_blocks.0.resnets", "the VAE of Stable Diffusion or Flux"),
    ("encoder.downsamples.0.downsamples", "the VAE of Wan 2.2"),
    ("encoder.downsamples.", "the VAE of Wan 2.1 or Qwen-Image"),
    ("encoder.mid_block.", "the VAE of Qwen-Image"),
    ("encoder.block.0.layer", "a T5 text encoder"),
    ("text_model.encoder", "a CLIP text encoder"),
    ("self_attn.q_norm", "a Qwen3 language model"),
    ("self_attn.q_proj", "a language model"),
)
_REMEDY = "give the file of the release, whole and not converted by another program"
LISTED_NAMES = 4
"""How many tensors an error names before it says how many more there are."""


def mapped_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pth file, mapped: nothing is read until used.

    Raises:
        CheckpointError: The file is missing, damaged, or not a file of tensors.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file", _file_inside(path))
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "check the path")
    if path.suffix in {".pth", ".pt", ".ckpt"}:
        return _unpickled(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error})", "download or copy it again"
        ) from error


def landed(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy a mapped tensor to where it is used, images' weights in channels_last order."""
    order = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=dtype, device=device, memory_format=order).copy_(tensor)


def check_names(
    path: Path, what: str, *, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]
) -> None:
    """Compare the tensors that a network needs with those that a file has.

    Raises:
        CheckpointError: Some are missing, too many or of another shape; it names them.
    """
    problems: list[str] = []
    if missing := expected.keys() - found.keys():
        problems.append(f"lacks {listed(missing)}")
    if unexpected := found.keys() - expected.keys():
        problems.append(f"has unexpected {listed(unexpected)}")
    shapes = {
        f"{name} {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    }
    if shapes:
        problems.append(f"has {listed(shapes)}")
    if problems:
        raise CheckpointError(f"{path}, as {what}, {' and '.join(problems)}", _REMEDY)


def wrong_kind(path: Path, wanted: str, names: Collection[str]) -> CheckpointError:
    """Return the error for a file that is not `wanted`, saying what it looks like instead."""
    kind = next((kind for piece, kind in _KINDS if any(piece in name for name in names)), None)
    looks = f"it looks like {kind}" if kind else f"its tensors are {listed(names)}"
    return CheckpointError(f"{path} is not {wanted}: {looks}", _REMEDY)


def listed(names: Collection[str]) -> str:
    """Return the first few names in order, and how many more there are."""
    if not names:
        return "none"
    first = ", ".join(sorted(names)[:LISTED_NAMES])
    more = len(names) - LISTED_NAMES
    return f"{first} and {more} more" if more > 0 else first


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    try:
        # weights_only refuses anything that could run code.
        loaded: object = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole torch file of tensors", "give the .safetensors file instead"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(torch.is_tensor(x) for x in loaded.values()):
        raise CheckpointError(
            f"{path} holds other things than tensors", "give the .safetensors file instead"
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _file_inside(folder: Path) -> str:
    inside = sorted(file.name for file in folder.glob("*.safetensors"))
    return f"give the file itself, such as {folder / inside[0]}" if inside else "give the file"
