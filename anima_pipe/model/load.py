"""From checkpoint files to a transformer that holds exactly what was in them, or an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from anima_pipe.errors import CheckpointError
from anima_pipe.model.anima import AnimaTransformer
from anima_pipe.model.config import TransformerConfig, config_from_shapes
from anima_pipe.weights.files import StoredTensor, check_names, copy_tensors, read_header
from anima_pipe.weights.kinds import LLM_ADAPTER, TRANSFORMER, find_kind, wrong_kind
from anima_pipe.weights.names import PREFIXES, usable

WANTED = "an Anima transformer"
WANTED_TEXT_ADAPTER = "the file of Anima's text adapter alone"
TEXT_ADAPTER = "llm_adapter."
"""What the names of the text adapter's tensors begin with."""
OTHER_PARTS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.")
"""What else is in a whole ComfyUI checkpoint, beside `model.diffusion_model.`."""


class _Part(NamedTuple):
    """What one file brings to the model."""

    path: Path
    what: str
    """What the file was given as, in words."""
    remedy: str
    """What to do where it is something else."""
    tensors: dict[str, StoredTensor]
    """By the name of the parameter."""


class _Checkpoint(NamedTuple):
    """Files that have been found to hold a whole transformer, and how they fit the model."""

    parts: tuple[_Part, ...]
    skeleton: AnimaTransformer
    """Without memory: on the meta device."""


def load_transformer(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    llm_adapter: str | Path | None = None,
) -> AnimaTransformer:
    """Load a transformer from safetensors files, each weight once into its dtype and device.

    Memory grows by the size of the model in `dtype` and a chunk of a file.

    Args:
        path: A checkpoint of Anima: any number of blocks, any of the known prefixes.
        dtype: Of the weights: float32, bfloat16 or float16.
        device: Where the weights are wanted.
        llm_adapter: The text adapter's own file, its names with or without `llm_adapter.` and
            any of the known prefixes. It is taken instead of the one in `path`, which may then
            lack it. None: it is in `path`.

    Raises:
        CheckpointError: A file is not what it was given as, and what it is instead; or the two do
            not fit each other.
    """
    checkpoint = _examine(path, llm_adapter)
    model = checkpoint.skeleton.to(dtype).to_empty(device=device)
    weights = dict(model.named_parameters())
    for part in checkpoint.parts:
        copy_tensors(part.path, part.tensors, weights)
    return model


def read_transformer_config(
    path: str | Path, llm_adapter: str | Path | None = None
) -> TransformerConfig:
    """Read the sizes of a transformer from its files' headers, after all checks of loading it.

    Raises:
        CheckpointError: As `load_transformer`.
    """
    return _examine(path, llm_adapter).skeleton.config


def _examine(path: str | Path, llm_adapter: str | Path | None) -> _Checkpoint:
    parts = _found_parts(Path(path), Path(llm_adapter) if llm_adapter else None)
    found = {name: tensor.shape for part in parts for name, tensor in part.tensors.items()}
    config = _read_sizes(parts, found)
    with torch.device("meta"):
        skeleton = AnimaTransformer(config)
    wanted = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters()}
    for part in parts:
        check_names(
            part.path,
            part.what,
            part.remedy,
            expected={name: shape for name, shape in wanted.items() if _owner(parts, name) is part},
            found={name: tensor.shape for name, tensor in part.tensors.items()},
        )
    given, taken = config.llm_adapter.output_width, config.context_width
    if len(parts) > 1 and given != taken:
        raise CheckpointError(
            f"{llm_adapter} gives a text condition of width {given}, but {path} takes one of "
            f"{taken}",
            "Give the transformer and the text adapter of one model.",
        )
    return _Checkpoint(parts, skeleton)


def _found_parts(path: Path, llm_adapter: Path | None) -> tuple[_Part, ...]:
    """Return what each file holds of the model, the text adapter's own file last."""
    tensors = transformer_tensors(path)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(TEXT_ADAPTER)}
    if llm_adapter is not None:
        separate = _text_adapter_tensors(llm_adapter)
        return (
            _Part(path, WANTED, _GIVE_RELEASE, own),
            _Part(llm_adapter, WANTED_TEXT_ADAPTER, _GIVE_TEXT_ADAPTER, separate),
        )
    if len(own) == len(tensors):
        raise CheckpointError(
            f"{path} has no text adapter (llm_adapter.*): a Cosmos-Predict2 transformer, not "
            "Anima, or an Anima transformer whose text adapter is a file of its own",
            f"{_GIVE_RELEASE} Or give the text adapter's file too, as --{LLM_ADAPTER}.",
        )
    return (_Part(path, WANTED, _GIVE_RELEASE, tensors),)


def _owner(parts: tuple[_Part, ...], name: str) -> _Part:
    """Return the part that a tensor has to be in."""
    return parts[-1] if name.startswith(TEXT_ADAPTER) else parts[0]


def _read_sizes(
    parts: tuple[_Part, ...], shapes: Mapping[str, tuple[int, ...]]
) -> TransformerConfig:
    try:
        return config_from_shapes(shapes)
    except KeyError as missing:
        name: str = missing.args[0]
        part = _owner(parts, name)
        raise CheckpointError(f"{part.path} lacks {name}", part.remedy) from missing
    except ValueError as error:
        # It begins with the name of what does not fit, a tensor or the whole text adapter.
        part = parts[-1] if str(error).startswith("llm_adapter") else parts[0]
        problem = f"{part.path} is not {part.what}: {error}"
        raise CheckpointError(problem, part.remedy) from error


def transformer_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the transformer's tensors by their names without prefix, harmless extras left out."""
    stored = read_header(path)
    prefix = _find_prefix(path, stored)
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in stored.items()
        if not (prefix and name.startswith(OTHER_PARTS))
    }
    return usable(path, tensors)


def _text_adapter_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the text adapter's own file by their names in the model."""
    stored = read_header(path)
    kind = find_kind(stored)
    if kind is None or kind.option != LLM_ADAPTER:
        raise wrong_kind(path, WANTED_TEXT_ADAPTER, LLM_ADAPTER, stored, _GIVE_TEXT_ADAPTER)
    prefixes = (f"{prefix}{TEXT_ADAPTER}" for prefix in PREFIXES)
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in stored)), "")
    # What lacks the prefix of the others keeps its name, and will be unexpected.
    tensors = {
        TEXT_ADAPTER + name.removeprefix(prefix) if name.startswith(prefix) else name: tensor
        for name, tensor in stored.items()
    }
    return usable(path, tensors)


def _find_prefix(path: Path, names: Collection[str]) -> str:
    # The names of the text adapter's blocks begin like those of the transformer's.
    kind = find_kind(names)
    for prefix in PREFIXES if kind and kind.option != LLM_ADAPTER else ():
        # Two names, for a file may lack either; a foreign model has neither.
        own = (f"{prefix}x_embedder.proj.1.weight", f"{prefix}blocks.0.self_attn.q_norm.weight")
        if any(name in names for name in own):
            return prefix
    raise wrong_kind(path, WANTED, TRANSFORMER, names, _GIVE_RELEASE)


_GIVE_RELEASE = "Give a whole Anima transformer, such as anima-base-v1.0.safetensors."
_GIVE_TEXT_ADAPTER = (
    "Give a file of the text adapter's weights alone; without one, the transformer's is used."
)
