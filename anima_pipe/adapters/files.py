"""Adapter files: written in one of three styles, read in any, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from anima_pipe.adapters.adapter import Adapter
from anima_pipe.adapters.delta import Delta, root_module
from anima_pipe.adapters.inject import depths, walk
from anima_pipe.adapters.registry import (
    FOREIGN_TENSORS,
    delta_class_of,
    kind_name,
    tensor_names_in_files,
)
from anima_pipe.adapters.styles import PathIndex, find_style, split_key
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.files import write_atomically

DEPTHS_KEY = "model_depths"
"""Metadata: the lengths of the model's lists of layers, JSON. An adapter fits one depth only."""


def save_adapter(
    adapter: Adapter,
    path: str | os.PathLike[str],
    style: str = "comfy",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    drop_norms: bool = False,
) -> Path:
    """Write an adapter to a safetensors file; the file is whole or not there.

    Args:
        adapter: What to save, as at strength 1.
        path: The file; its folder is made if need be.
        style: "comfy", "kohya" or "diffusers".
        dtype: Of the trained tensors; None: as they are, fp32. Alpha stays fp32.
        metadata: Goes into the header beside the adapter's own.
        drop_norms: Leave the norms out, for a style that cannot express them.

    Raises:
        ConfigError: The style cannot express something.
        OutputError: The file cannot be written.
    """
    keys = find_style(style)
    tensors: dict[str, Tensor] = {}
    for place, delta in adapter.deltas.items():
        if drop_norms and delta.group == "norm":
            continue
        for name, tensor in _expressed(delta, place, style).items():
            kept = tensor if name == "alpha" or dtype is None else tensor.to(dtype)
            tensors[keys.key(place, name)] = kept.cpu().contiguous()
    header = {**(metadata or {}), **adapter_metadata(adapter, style)}
    path = Path(path)
    write_atomically(path, save(tensors, header))
    return path


def adapter_metadata(adapter: Adapter, style: str) -> dict[str, str]:
    """Return what every adapter file says of itself."""
    linears = [delta for delta in adapter.deltas.values() if delta.rank is not None]
    return {
        "format": "pt",
        "adapter_kind": adapter.kind,
        "adapter_style": style,
        "adapter_rank": ",".join(sorted({str(delta.rank) for delta in linears})),
        "adapter_alpha": ",".join(sorted({f"{delta.alpha:g}" for delta in linears})),
        DEPTHS_KEY: json.dumps(adapter.model_depths),
    }


def load_adapter(path: str | os.PathLike[str], model: nn.Module, strength: float = 1.0) -> Adapter:
    """Put the adapter of a file on a model, trainable; its kinds may differ among modules.

    Args:
        path: A safetensors file in any of the styles.
        model: As for `create_adapter`.
        strength: Multiplies the changes.

    Raises:
        CheckpointError: No adapter, or of a kind unknown here, or for a model of another depth or
            width, or with tensors that match nothing in this one.
    """
    file = read_adapter_file(path)
    _refuse_other_depth(file, model)
    places = _match_modules(file, model)
    deltas = {
        place: _delta_of(file, part, module)
        for place, module in walk(model)
        if (part := places.get(place)) is not None
    }
    adapter = Adapter(model, deltas)
    adapter.set_strength(strength)
    return adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """An adapter file's contents, in our names of tensors and the file's names of modules."""

    path: Path
    modules: Mapping[str, Mapping[str, Tensor]]
    """What the file calls a module -> its tensors by our names, on the CPU."""
    metadata: Mapping[str, str]


def read_adapter_file(path: str | os.PathLike[str]) -> AdapterFile:
    """Read an adapter file of any style.

    Raises:
        CheckpointError: It cannot be read, or holds something else than adapters.
    """
    path, names = Path(path), tensor_names_in_files()
    try:
        with safe_open(path, framework="pt") as file:
            places = {key: split_key(key, names) for key in file.keys()}  # noqa: SIM118 (not iterable)
            _refuse_other_tensors(path, [key for key, place in places.items() if place is None])
            modules: dict[str, dict[str, Tensor]] = {}
            for key, place in places.items():
                assert place is not None
                tensors = modules.setdefault(place[0], {})
                if names[place[1]] in tensors:
                    raise CheckpointError(f"{path}: {key} is there under two names", _ANOTHER_FILE)
                tensors[names[place[1]]] = file.get_tensor(key)
            return AdapterFile(path=path, modules=modules, metadata=file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "give a whole .safetensors file of an adapter"
        ) from error


_ANOTHER_FILE = "use the file as its trainer wrote it"


def _refuse_other_tensors(path: Path, others: Sequence[str]) -> None:
    """Check that a file holds tensors of adapters alone.

    Raises:
        CheckpointError: It holds `others` too, or nothing else.
    """
    if others:
        raise CheckpointError(
            f"{path}: {len(others)} tensors are of no adapter kind known here: {_some(others)}",
            "give a LoRA or LoKr file; a full checkpoint goes where the base model is named",
        )


def _refuse_other_depth(file: AdapterFile, model: nn.Module) -> None:
    """Check that an adapter was made for a model with as many layers, if it says so.

    Raises:
        CheckpointError: It was not.
    """
    stated: dict[str, int] = json.loads(file.metadata.get(DEPTHS_KEY, "{}"))
    own = depths(model)
    wrong = [path for path in stated.keys() | own.keys() if stated.get(path) != own.get(path)]
    if stated and wrong:
        raise CheckpointError(
            f"{file.path} was trained on a model with layers {stated}, this one has {own}",
            "use the base model that it was trained on; an adapter fits one depth only",
        )


def _match_modules(file: AdapterFile, model: nn.Module) -> dict[str, str]:
    """Return checkpoint name -> the file's name of every module in a file.

    Raises:
        CheckpointError: A module is not in the model, or is in the file twice.
    """
    index = PathIndex(
        path
        for path, module in walk(model)
        if any(True for _ in root_module(module).parameters(recurse=False))
    )
    places: dict[str, str] = {}
    unmatched: list[str] = []
    for part in file.modules:
        place = index.find(part)
        if place is None:
            unmatched.append(part)
        elif place in places:
            raise CheckpointError(
                f"{file.path}: {part} and {places[place]} are one module", _ANOTHER_FILE
            )
        else:
            places[place] = part
    if unmatched:
        raise CheckpointError(
            f"{file.path}: {len(unmatched)} of {len(file.modules)} modules are not in this model: "
            f"{_some(unmatched)}",
            "use an adapter that was trained on this model",
        )
    return places


def _delta_of(file: AdapterFile, part: str, module: nn.Module) -> Delta:
    """Return the delta for one module.

    Raises:
        CheckpointError: The tensors are of a kind unknown here, or do not fit the module.
    """
    tensors = file.modules[part]
    delta_class = delta_class_of(tensors)
    if delta_class is None:
        kinds = sorted({FOREIGN_TENSORS[name] for name in tensors if name in FOREIGN_TENSORS})
        raise CheckpointError(
            f"{file.path}: {part} is of kind {' with '.join(kinds) or 'unknown'} "
            f"({', '.join(sorted(tensors))})",
            "only LoRA, LoKr and norms can be put on a model here",
        )
    try:
        return delta_class.from_file(module, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {part}: {error.problem}", error.remedy) from error


def _expressed(delta: Delta, place: str, style: str) -> dict[str, Tensor]:
    """Return a delta's tensors for a style, by our names.

    Raises:
        ConfigError: The style has no words for this kind.
    """
    if not find_style(style).plain_lora_only:
        return delta.file_tensors()
    plain = delta.plain_lora()
    if plain is None:
        remedy = (
            "leave the norms out with drop_norms, or train with train_norm off"
            if delta.group == "norm"
            else "save it in style comfy"
        )
        raise ConfigError(f"style {style} cannot express the {kind_name(delta)} of {place}", remedy)
    return {"lora_A.weight": plain[0], "lora_B.weight": plain[1]}


def _some(names: Sequence[str]) -> str:
    """Return the first few of a list of names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
