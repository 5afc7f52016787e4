"""Baking an adapter into a full checkpoint, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.extract import depths_of, read_tensor, without_prefix
from anima_pipe.adapters.headers import Origin, Source, baked_header, stored_metadata
from anima_pipe.adapters.reading import (
    AdapterFile,
    deltas_of,
    read_adapter_file,
    refuse_other_depth,
)
from anima_pipe.adapters.targets import TEXT_ADAPTER_PREFIX
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.export.comfy import anima_paths
from anima_pipe.export.verification import FileModule, file_modules, verify_checkpoint
from anima_pipe.files import published
from anima_pipe.runtime import warn
from anima_pipe.weights.files import BYTES_PER_NUMBER, StoredTensor, read_header
from anima_pipe.weights.writing import (
    DTYPES,
    STORED_NAMES,
    append_copy,
    append_tensor,
    size_in,
    write_header,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baked:
    """A checkpoint that was written."""

    path: Path
    keys: int
    """Tensors in the file."""
    changed: int
    """Those that the adapter changed."""
    largest_difference: float
    """Of all changed weights from what ComfyUI makes of the adapter's tensors, relative to the
    weight's largest element, after rounding."""


@torch.no_grad()
def bake_adapter(
    source: str | os.PathLike[str],
    checkpoint: Path,
    target: Path,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    *,
    allow_unmatched: bool = False,
) -> Baked:
    """Write a checkpoint with an adapter's changes in its weights, under the names it had.

    One tensor is in memory at a time, its change and both in fp32. Before the file gets its name
    it is read back: every changed tensor is compared with what ComfyUI makes of the adapter's own
    tensors, every other with the base's.

    Args:
        source: An adapter file of any style.
        checkpoint: The base, text adapter included: a file of its own (llm_adapter_path) is not
            read. Tensors that do not change are copied, those of other parts too.
        target: The file to write.
        strength: Multiplies the changes.
        dtype: Of the floating-point tensors written; None: each in its own.
        allow_unmatched: Leave out, with a warning, what of the adapter matches nothing.

    Raises:
        CheckpointError: A file cannot be read, is quantised, or they are of two models; or a number
            would not be finite.
        OutputError: The target cannot be written.
    """
    if target.resolve() == checkpoint.resolve():
        raise ConfigError(f"{target} is the base itself", "give another --output")
    adapter = read_adapter_file(source, allow_unmatched=allow_unmatched)
    deltas = deltas_of(adapter, anima_paths())
    stored = read_header(checkpoint)
    changes = _changes_by_tensor(adapter, deltas, checkpoint, stored)
    expected = _by_tensor(file_modules(adapter), stored)
    needing_base = [name for name, delta in changes.items() if delta.needs_base]
    _warn_of_another_text_adapter(adapter, checkpoint)
    in_order = dict(sorted(stored.items(), key=lambda item: item[1].start))
    layout = {name: _written_as(tensor, dtype) for name, tensor in in_order.items()}
    metadata = _metadata(checkpoint, adapter, strength)
    with published(target) as unfinished:
        with unfinished.open("wb") as out, checkpoint.open("rb") as base:
            entries = {n: (layout[n], t.shape, size_in(layout[n], t)) for n, t in in_order.items()}
            write_header(out, entries, metadata)
            for name, tensor in in_order.items():
                if name not in changes and layout[name] == tensor.dtype:
                    append_copy(out, name, base, tensor, target)
                    continue
                weight = read_tensor(checkpoint, tensor)
                if name in changes:
                    weight = weight + strength * _change(changes[name], name, weight)
                append_tensor(out, name, weight.to(DTYPES[layout[name]]), target)
        expected |= {name: FileModule(changes[name].file_tensors()) for name in needing_base}
        largest = verify_checkpoint(unfinished, checkpoint, expected, strength)
    return Baked(path=target, keys=len(stored), changed=len(changes), largest_difference=largest)


def _metadata(checkpoint: Path, adapter: AdapterFile, strength: float) -> dict[str, str]:
    """Return what the header says: what the base's does, and what was baked into it."""
    base = Source(path=checkpoint, metadata=stored_metadata(checkpoint))
    baked = Source(path=adapter.path, metadata=adapter.metadata, strength=strength)
    return baked_header(Origin(command="export-comfy --merge", sources=(base, baked)))


def _change(delta: Delta, name: str, weight: Tensor) -> Tensor:
    """Return the change of one tensor, as it trained; from here on by ComfyUI's rules."""
    parameter = name.rpartition(".")[2]
    change = delta.parameter_change(parameter, weight)
    delta.settle({parameter: weight})
    return change


def _changes_by_tensor(
    adapter: AdapterFile,
    deltas: Mapping[str, Delta],
    checkpoint: Path,
    stored: Mapping[str, StoredTensor],
) -> dict[str, Delta]:
    """Return the delta of each tensor that changes, by its name in the checkpoint.

    Raises:
        CheckpointError: The adapter is of a model of another depth, width or kind.
    """
    names = {without_prefix(name): name for name in stored}
    _refuse_absent_text_adapter(adapter, deltas, checkpoint, names)
    refuse_other_depth(adapter, depths_of(names), str(checkpoint))
    changes: dict[str, Delta] = {}
    for path, delta in deltas.items():
        for parameter, shape in delta.shapes.items():
            name = names.get(f"{path}.{parameter}")
            if name is None or stored[name].shape != shape:
                found = "nothing" if name is None else stored[name].shape
                raise CheckpointError(
                    f"{adapter.path} changes {path}.{parameter} of shape {shape}, but {checkpoint} "
                    f"has {found} there",
                    "use the base model that it was trained on",
                )
            changes[name] = delta
    return changes


def _by_tensor(modules: Mapping[str, FileModule], stored: Collection[str]) -> dict[str, FileModule]:
    """Return what ComfyUI changes each tensor of a checkpoint by, by its name there."""
    names = {without_prefix(name): name for name in stored}
    paths = {f"{path}.{n}": module for path, module in modules.items() for n in module.shapes}
    return {names[path]: module for path, module in paths.items() if path in names}


def _refuse_absent_text_adapter(
    adapter: AdapterFile, deltas: Collection[str], checkpoint: Path, names: Collection[str]
) -> None:
    """Check that a checkpoint holds the text adapter where something is to be baked into it.

    Raises:
        CheckpointError: Its text adapter is a file of its own.
    """
    changed, held = (any(n.startswith(TEXT_ADAPTER_PREFIX) for n in x) for x in (deltas, names))
    if changed and not held:
        raise CheckpointError(
            f"{adapter.path} changes the text adapter, and {checkpoint} does not hold one",
            "give a checkpoint that holds llm_adapter.* too, as ComfyUI reads it",
        )


def _warn_of_another_text_adapter(adapter: AdapterFile, checkpoint: Path) -> None:
    """Say that what is baked was trained with a text adapter that the checkpoint may not have."""
    name = adapter.metadata.get("ss_llm_adapter_name")
    if name is not None:
        warn(
            f"{adapter.path} was trained with the text adapter of {name} (llm_adapter_path), which "
            f"is not baked in: the output has that of {checkpoint}"
        )


def _written_as(tensor: StoredTensor, dtype: torch.dtype | None) -> str:
    """Return the dtype that a tensor gets, as safetensors spells it."""
    if dtype is None or tensor.dtype not in BYTES_PER_NUMBER:
        return tensor.dtype
    return STORED_NAMES[dtype]
