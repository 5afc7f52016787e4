"""Adapter files of any style, ours and other programs': read whole or not at all."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anima_pipe.adapters.delta import SCALES, Delta
from anima_pipe.adapters.foreign import whose_module
from anima_pipe.adapters.headers import read_depths
from anima_pipe.adapters.peft import PREFIX as PEFT_PREFIX
from anima_pipe.adapters.peft import adapter_file_in, with_scales
from anima_pipe.adapters.registry import (
    FOREIGN_TENSORS,
    delta_classes_of,
    kind_name,
    kind_names,
    tensor_names_in_files,
)
from anima_pipe.adapters.styles import PathIndex, split_key
from anima_pipe.adapters.targets import TEXT_ADAPTER_PREFIX
from anima_pipe.errors import CheckpointError
from anima_pipe.files import refuse_endless
from anima_pipe.runtime import warn

BLOCKS: Final = "blocks"
"""The list of layers that models differ in."""
KNOWN_DEPTHS: Final = (28, 36, 40, 52)
"""Numbers of blocks of the models that there are."""

OTHER_MODEL: Final = "use an adapter that was trained on this model"
_EDITED = "use the file as its trainer wrote it"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What an adapter file holds: our names of tensors, its own names of modules."""

    path: Path
    modules: Mapping[str, Mapping[str, Tensor]]
    """What the file calls a module -> its tensors by our names, on the CPU."""
    metadata: Mapping[str, str]
    allow_unmatched: bool = False
    """Whether what matches nothing is left out with a warning, and not an error."""

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of the tensors that are not scales, which are fp32 in any file."""
        return {
            t.dtype
            for module in self.modules.values()
            for n, t in module.items()
            if n not in SCALES
        }

    def blocks_changed(self) -> set[int]:
        """Return the numbers of the model's blocks that it changes."""
        pattern = re.compile(
            rf"(?:.*[._])?(?<!llm_adapter[._])(?<!text_conditioner[._]){BLOCKS}[._](\d+)[._]"
        )
        found = (pattern.match(module) for module in self.modules)
        return {int(match[1]) for match in found if match}

    @property
    def depths(self) -> dict[str, int]:
        """The depths of the model that it was trained on; empty if it does not say."""
        return read_depths(self.metadata, self.path)


def holding_all(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype that holds the numbers of all of some; fp32 of none, of 8 bits bf16.

    Of fp16 and bf16 it is fp32: one has the digits and the other the range. Eight bits are enough
    for numbers that were trained to be in them, and not for what is computed of these.
    """
    wide = {torch.bfloat16 if dtype.itemsize == 1 else dtype for dtype in dtypes}
    return functools.reduce(torch.promote_types, wide) if wide else torch.float32


def read_adapter_file(
    path: str | os.PathLike[str], *, allow_unmatched: bool = False
) -> AdapterFile:
    """Read an adapter file of any style.

    Args:
        path: The file, or the folder that PEFT wrote it into.
        allow_unmatched: Leave out, with a warning, tensors of no adapter kind, and later, in
            `deltas_of`, modules that the model does not have.

    Raises:
        CheckpointError: It cannot be read, or holds something else than adapters.
    """
    path, names = adapter_file_in(Path(path)), tensor_names_in_files()
    modules: dict[str, dict[str, Tensor]] = {}
    try:
        refuse_endless(path)
        with safe_open(path, framework="pt") as file:
            places = {key: split_key(key, names) for key in file.keys()}  # noqa: SIM118 (no dict)
            if not places:
                raise CheckpointError(f"{path} holds no tensors", "give an adapter's file")
            others = [key for key, place in places.items() if place is None]
            if len(others) == len(places) or not allow_unmatched:
                _refuse_others(path, others)
            elif others:
                warn(f"{path}: {len(others)} tensors of no adapter kind left out: {_some(others)}")
            for key, place in places.items():
                if place is None:
                    continue
                module, name = place[0], names[place[1]]
                if name in modules.setdefault(module, {}):
                    raise CheckpointError(f"{path} has {key} under two names", _EDITED)
                modules[module][name] = file.get_tensor(key)
            metadata: dict[str, str] = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "correct the path") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            "give a whole .safetensors file of an adapter",
        ) from error
    return AdapterFile(
        path=path,
        modules=with_scales(path, modules, metadata),
        metadata=metadata,
        allow_unmatched=allow_unmatched,
    )


def deltas_of(file: AdapterFile, index: PathIndex) -> dict[str, Delta]:
    """Return the deltas of a file by checkpoint name of their module.

    Raises:
        CheckpointError: A module is not in the index, or twice in the file; tensors are of a kind
            unknown here, or do not go together.
    """
    found = places_in(file, index)
    places: dict[str, str] = {}
    unmatched = [module for module, place in found.items() if place is None]
    for module, place in found.items():
        if place is not None and places.setdefault(place, module) != module:
            raise CheckpointError(f"{file.path} has {place} under two names", _EDITED)
    whose = next(filter(None, map(whose_module, unmatched)), None)
    problem = (
        f"{file.path}: {len(unmatched)} of {len(file.modules)} modules are not in this model: "
        f"{_some(unmatched)}{(whose and f'; they are names {whose}') or ''}"
    )
    if unmatched and (not file.allow_unmatched or not places):
        raise CheckpointError(
            problem, f"{OTHER_MODEL}; --allow_unmatched leaves out what matches nothing"
        )
    if unmatched:
        warn(f"{problem}; they are left out")
    return {place: _delta_of(file, module) for place, module in places.items()}


def places_in(file: AdapterFile, index: PathIndex) -> dict[str, str | None]:
    """Return the checkpoint name of each module of a file; None where there is none."""
    places = {module: index.find(module) for module in file.modules}
    if None not in places.values():
        return places
    # PEFT and LyCORIS write the names within what they wrapped, which may be the text adapter.
    within = {module: index.find(module, TEXT_ADAPTER_PREFIX) for module in file.modules}
    return places if None in within.values() else within


def _delta_of(file: AdapterFile, module: str) -> Delta:
    """Return the delta of one module of a file."""
    tensors = file.modules[module]
    classes = delta_classes_of(tensors)
    foreign = sorted({FOREIGN_TENSORS[name] for name in tensors if name in FOREIGN_TENSORS})
    if len(classes) > 1 and not foreign:
        mixed = " and ".join(map(kind_name, classes))
        raise CheckpointError(
            f"{file.path}: {module} is of several kinds at once, {mixed}: "
            "ComfyUI would apply one of them and pass over the others",
            "give each a file of its own, and add them up with merge",
        )
    if not classes or foreign:
        raise CheckpointError(
            f"{file.path}: {module} is of kind {' with '.join(foreign) or 'unknown'} "
            f"({', '.join(sorted(tensors))})",
            f"only {', '.join(kind_names())} can be used here",
        )
    _refuse_doubles(file, module, classes[0])
    try:
        delta = classes[0].from_file(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {module}: {error.problem}", error.remedy) from error
    unused = tensors.keys() - delta.trained().keys() - classes[0].read_as_others.keys() - {"alpha"}
    if unused:
        raise CheckpointError(
            f"{file.path}: {module} has {', '.join(sorted(unused))} beside what would be used, "
            f"{', '.join(delta.trained())}",
            _EDITED,
        )
    return delta


def _refuse_doubles(file: AdapterFile, module: str, delta_class: type[Delta]) -> None:
    """Check that a module's tensors say everything once."""
    for name, becomes in delta_class.read_as_others.items():
        if {name, becomes} <= file.modules[module].keys():
            raise CheckpointError(
                f"{file.path}: {module} has both {becomes} and {name}, which say the same", _EDITED
            )


def refuse_other_depth(file: AdapterFile, own: Mapping[str, int], whose: str = "this one") -> None:
    """Check that an adapter's model had as many layers as this one.

    Files of other programs do not say it. One that changes all blocks of a smaller model that is
    known, and none beyond, was made for that one.

    Args:
        file: The adapter.
        own: The numbers of layers of the model.
        whose: What to call the model.

    Raises:
        CheckpointError: It is of a model of another depth.
    """
    own_blocks, changed = own.get(BLOCKS, 0), file.blocks_changed()
    implied = max(changed, default=0) + 1
    is_of_other = len(changed) == implied < own_blocks and implied in KNOWN_DEPTHS
    if is_of_other and not file.depths and not file.allow_unmatched:
        raise CheckpointError(
            f"{file.path} changes {implied} {BLOCKS}, as of a model with so many; {whose} has "
            f"{own_blocks}",
            "use the base model that it was trained on; if that is this one, and only these "
            "blocks were trained, --allow_unmatched says so",
        )
    for path, count in file.depths.items():
        if own.get(path, count) != count:
            raise CheckpointError(
                f"{file.path} was trained on a model with {count} {path}, {whose} has {own[path]}",
                "use the base model that it was trained on; an adapter fits one depth only",
            )


def _refuse_others(path: Path, keys: Sequence[str]) -> None:
    """Check that no key of a file is of something else than an adapter."""
    if not keys:
        return
    problem = f"{path}: {len(keys)} tensors are of no adapter kind: {_some(keys)}"
    if all(key.startswith(PEFT_PREFIX) for key in keys):
        raise CheckpointError(
            f"{problem}; they are whole parameters that PEFT saved (modules_to_save or bias)",
            "train without them; --allow_unmatched leaves them out, and the picture will differ",
        )
    raise CheckpointError(
        problem, "give an adapter's file; a full checkpoint goes where the base model is named"
    )


def _some(names: Sequence[str]) -> str:
    """Return the first few of a list of names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
