"""Adapters to files, in one of three styles, and from files onto a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from anima_pipe.adapters.adapter import Adapter
from anima_pipe.adapters.delta import SCALES, Delta, effective_weights, root_module
from anima_pipe.adapters.hashes import kohya_hashes
from anima_pipe.adapters.headers import DEPTHS_KEY, tensor_facts
from anima_pipe.adapters.inject import depths, walk
from anima_pipe.adapters.lora import LoraConfig, LoraDelta
from anima_pipe.adapters.reading import (
    OTHER_MODEL,
    deltas_of,
    read_adapter_file,
    refuse_other_depth,
)
from anima_pipe.adapters.registry import kind_in_words
from anima_pipe.adapters.styles import PathIndex, find_style
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.plain_text import in_utf8
from anima_pipe.runtime import counted, warn
from anima_pipe.weights.writing import not_finite, write_tensors


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
        dtype: Of the trained tensors; None: as they are. Scales, `delta.SCALES`, stay fp32.
        metadata: Goes into the header beside the adapter's own.
        drop_norms: Leave the norms out, for a style that cannot express them.

    Raises:
        CheckpointError: A number is not finite.
        ConfigError: The style cannot express something.
        OutputError: The file cannot be written.
    """
    stamped = {**(metadata or {}), DEPTHS_KEY: json.dumps(adapter.model_depths)}
    return write_deltas(adapter.deltas, path, style, dtype, stamped, drop_norms=drop_norms)


def check_style(adapter: Adapter, style: str) -> None:
    """Make sure, before training rather than at the first save, that a style can express it.

    Raises:
        ConfigError: It cannot.
    """
    in_style(adapter.deltas, style)


def write_deltas(
    deltas: Mapping[str, Delta],
    path: str | os.PathLike[str],
    style: str = "comfy",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    drop_norms: bool = False,
) -> Path:
    """Write deltas, by module path, to a file; otherwise as `save_adapter`."""
    tensors, header = tensors_and_header(deltas, style, dtype, metadata, drop_norms=drop_norms)
    write_tensors(Path(path), tensors, header)
    return Path(path)


def tensors_and_header(
    deltas: Mapping[str, Delta],
    style: str,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str] | None,
    *,
    drop_norms: bool = False,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what the file of deltas holds; arguments and errors as `write_deltas`."""
    keys = find_style(style)
    if drop_norms:
        deltas = {place: delta for place, delta in deltas.items() if delta.group != "norm"}
    deltas = in_style(deltas, style)
    tensors: dict[str, Tensor] = {}
    for place, delta in deltas.items():
        for name, tensor in delta.file_tensors().items():
            if name == "alpha" and keys.plain_lora_only:
                continue
            kept = tensor if name in SCALES or dtype is None else tensor.to(dtype)
            tensors[keys.key(place, name)] = kept.cpu().contiguous()
    stated = {**(metadata or {}), **tensor_facts(deltas, style, metadata or {})}
    metadata = {name: in_utf8(value) for name, value in stated.items()}
    # Those of the file that the metadata came from would not be of these tensors.
    hashes = kohya_hashes(tensors, metadata)
    metadata |= hashes
    if "modelspec.sai_model_spec" in metadata:
        metadata["modelspec.hash_sha256"] = f"0x{hashes['sshs_model_hash']}"
    return tensors, metadata


def load_adapter(
    path: str | os.PathLike[str],
    model: nn.Module,
    strength: float = 1.0,
    *,
    allow_unmatched: bool = False,
) -> Adapter:
    """Put the adapter of a file on a model, trainable; its kinds may differ among modules.

    Args:
        path: A safetensors file in any of the styles, or PEFT's folder.
        model: As for `create_adapter`.
        strength: Multiplies the changes.
        allow_unmatched: Leave out, with a warning, tensors that match nothing in the model.

    Raises:
        CheckpointError: No adapter, or of a kind unknown here, or for a model of another depth or
            width, or with tensors that match nothing in this one, or are not finite.
    """
    deltas, modules = (
        fitting_deltas(path, model, allow_unmatched=allow_unmatched),
        dict(walk(model)),
    )
    for place, delta in deltas.items():
        if delta.needs_base:
            delta.settle(effective_weights(modules[place]))
    adapter = Adapter(model, deltas)
    adapter.set_strength(strength)
    return adapter


def fitting_deltas(
    path: str | os.PathLike[str], model: nn.Module, *, allow_unmatched: bool = False
) -> dict[str, Delta]:
    """Return the deltas of a file, by module path in the model's order, if they fit the model.

    Args:
        path: As for `load_adapter`.
        model: As for `load_adapter`; its numbers are not looked at, so that it may be without.
        allow_unmatched: As for `load_adapter`.

    Raises:
        CheckpointError: As `load_adapter`.
    """
    file = read_adapter_file(path, allow_unmatched=allow_unmatched)
    refuse_other_depth(file, depths(model))
    shapes = {place: _parameter_shapes(module) for place, module in walk(model)}
    deltas = deltas_of(file, PathIndex(place for place, found in shapes.items() if found))
    for place, delta in deltas.items():
        if not delta.shapes.items() <= shapes[place].items():
            raise CheckpointError(
                f"{file.path}: {place} has {shapes[place]}, but the file changes {delta.shapes}",
                OTHER_MODEL,
            )
        _refuse_not_finite(file.path, place, delta)
    return {place: deltas[place] for place in shapes if place in deltas}


def _refuse_not_finite(path: Path, place: str, delta: Delta) -> None:
    """Check that what is put on a model leaves its numbers finite."""
    if spoilt := not_finite(delta.file_tensors()):
        raise CheckpointError(
            f"{path}: not every number is finite in {place}.{spoilt[0]}",
            "use another save of this adapter",
        )


def _parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's own parameters, those of what is under its wrappers."""
    own = root_module(module).named_parameters(recurse=False)
    return {name: tuple(parameter.shape) for name, parameter in own}


def in_style(deltas: Mapping[str, Delta], style: str) -> Mapping[str, Delta]:
    """Return deltas as a style expresses them: for one of plain LoRA, with alpha folded in.

    Raises:
        ConfigError: The style has no words for a kind, or the program that it is named for would
            make something else of it.
    """
    for place, delta in deltas.items():
        _refuse_without_base(delta, place)
    if find_style(style).plain_lora_only:
        return {place: _folded(delta, place, style) for place, delta in deltas.items()}
    for place, delta in deltas.items():
        unread = _unread(delta, style)
        if unread and delta.group != "norm":
            raise ConfigError(
                f"style {style} cannot express {place}, which is of kind {kind_in_words(delta)}: "
                f"sd-scripts passes over {', '.join(sorted(unread))}, and what is left is another "
                "adapter",
                "save in style comfy, which has words for every kind",
            )
    return deltas


def unread_norms(deltas: Mapping[str, Delta], style: str) -> list[str]:
    """Return the norms that a style has names for, and its program no use."""
    return [place for place, d in deltas.items() if d.group == "norm" and _unread(d, style)]


def warn_of_unread_norms(deltas: Mapping[str, Delta], style: str) -> None:
    """Say where the program that a style is named for passes over norms."""
    if unread := unread_norms(deltas, style):
        warn(
            f"sd-scripts passes over {counted(len(unread), 'trained norm')} in style {style}, "
            "which ComfyUI applies; to leave them out: --no-train_norm in training, --drop_norms "
            "in export-comfy and convert"
        )


def _unread(delta: Delta, style: str) -> set[str]:
    """Return the tensors of a delta that the program a style is named for passes over."""
    read = find_style(style).read_by_its_program
    return set() if read is None else delta.file_tensors().keys() - read


def _refuse_without_base(delta: Delta, place: str) -> None:
    """Check that a delta can be written without knowing what it is put on."""
    if delta.needs_base:
        raise ConfigError(
            f"{place} has PEFT's DoRA, whose scale goes with the norms of the changed weight, and "
            "ComfyUI's with those of the base: without the base it cannot be written",
            "bake it into the base: export-comfy --merge; or train on from it as network_weights, "
            "which saves ComfyUI's",
        )


def _folded(delta: Delta, place: str, style: str) -> LoraDelta:
    """Return a delta as a LoRA whose alpha is its rank."""
    plain = delta.plain_lora()
    if plain is not None and "bias" not in delta.shapes:
        return LoraDelta(*plain, LoraConfig(rank=plain[0].shape[0]))
    raise ConfigError(
        f"style {style} cannot express {place}, which is of kind {kind_in_words(delta)}",
        "drop the norms when exporting (--drop_norms; the picture will differ), or train without "
        "them (--no-train_norm)"
        if delta.group == "norm"
        else "save in style comfy",
    )
