"""Writing an adapter for inference programs: a file gets its name when it is verified."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.files import (
    in_style,
    tensors_and_header,
    unread_norms,
    warn_of_unread_norms,
)
from anima_pipe.adapters.headers import Origin, Source, derived_header
from anima_pipe.adapters.peft import adapter_file_in
from anima_pipe.adapters.reading import deltas_of, holding_all, read_adapter_file
from anima_pipe.adapters.styles import find_style
from anima_pipe.errors import ConfigError
from anima_pipe.export.comfy import anima_paths
from anima_pipe.export.verification import Change, file_modules, is_norm, verify_export
from anima_pipe.files import published, require_readable_name
from anima_pipe.weights.writing import serialized


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file that was written, and how far it is from what was trained."""

    path: Path
    keys: int
    """Tensors in the file."""
    largest_difference: float
    """See `verify_export`."""
    unread_norms: int
    """Norms that the program passes over which the style is named for."""


def convert_adapter(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    style: str = "comfy",
    dtype: torch.dtype | None = None,
    *,
    drop_norms: bool = False,
    allow_unmatched: bool = False,
    command: str = "convert",
) -> Export:
    """Write an adapter file anew in another style or dtype; no model is needed.

    The file is verified before it gets its name.

    Args:
        source: An adapter file of any style.
        target: The file to write.
        style: "comfy", "kohya" or "diffusers".
        dtype: Of the trained tensors; None: as in the source.
        drop_norms: Leave the norms out, for a program that does not apply them.
        allow_unmatched: Leave out, with a warning, what of the source matches nothing.
        command: What the header is to say made it.

    Raises:
        CheckpointError: The source cannot be read, or the target fails its verification.
        ConfigError: The style cannot express something, or the target is the source itself.
        OutputError: The target cannot be written.
    """
    if Path(target).resolve() == adapter_file_in(Path(source)).resolve():
        raise ConfigError(f"{target} is the adapter itself", "give another --output")
    file = read_adapter_file(source, allow_unmatched=allow_unmatched)
    deltas = deltas_of(file, anima_paths())
    expected = file_modules(file)
    whole = Source(path=file.path, metadata=file.metadata, deltas=deltas)
    if drop_norms:
        deltas = {module: delta for module, delta in deltas.items() if delta.group != "norm"}
        expected = {module: own for module, own in expected.items() if not is_norm(own)}
    if not deltas:
        raise ConfigError(f"{file.path} holds nothing but norms", "leave out --drop_norms")
    origin = Origin(command=command, sources=(whole,))
    dtype = dtype or holding_all(file.dtypes)
    return write_verified(deltas, target, style, dtype, origin, expected=expected)


def write_verified(
    deltas: Mapping[str, Delta],
    target: str | os.PathLike[str],
    style: str,
    dtype: torch.dtype | None,
    origin: Origin,
    *,
    expected: Mapping[str, Change] | None = None,
) -> Export:
    """Write deltas to a file that gets its name when it is verified.

    Args:
        deltas: What it is to hold, by module path.
        target: The file.
        style: "comfy", "kohya" or "diffusers".
        dtype: Of the trained tensors; None: as they are.
        origin: What it was made of, from whose headers its own follows.
        expected: What the file should change, where that is known apart from the deltas.

    Raises:
        CheckpointError: It fails its verification.
        ConfigError: The style cannot express something.
        OutputError: It cannot be written.
    """
    target = Path(target)
    require_readable_name(target, "give another --output")
    metadata = derived_header(origin, in_style(deltas, style), target.stem)
    tensors, header = tensors_and_header(deltas, style, dtype, metadata)
    with published(target) as unfinished:
        unfinished.write_bytes(serialized(tensors, header, target))
        folded = find_style(style).plain_lora_only
        wanted = deltas if expected is None else expected
        difference = verify_export(unfinished, wanted, folded=folded)
    warn_of_unread_norms(deltas, style)
    return Export(
        path=target,
        keys=len(tensors),
        largest_difference=difference,
        unread_norms=len(unread_norms(deltas, style)),
    )
