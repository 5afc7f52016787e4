"""Adapter files: written in one of three styles, read in any, whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from anima_pipe.adapters.adapter import Adapter
from anima_pipe.adapters.delta import SCALES, Delta, root_module
from anima_pipe.adapters.hashes import kohya_hashes
from anima_pipe.adapters.inject import depths, walk
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.adapters.registry import (
    FOREIGN_TENSORS,
    delta_class_of,
    kind_name,
    kind_names,
    tensor_names_in_files,
)
from anima_pipe.adapters.styles import PathIndex, find_style, split_key
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.files import with_sorted_header, write_atomically
from anima_pipe.runtime import warn

DEPTHS_KEY = "model_depths"
"""Metadata: the lengths of the model's lists of layers, JSON. An adapter fits one depth only."""

BLOCKS: Final = "blocks"
"""The list of layers that models differ in."""
KNOWN_DEPTHS: Final = (28, 36, 40, 52)
"""Numbers of blocks of the models that there are."""

_OTHER_MODEL = "use an adapter that was trained on this model"
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
    def dtype(self) -> torch.dtype:
        """The finest dtype among the tensors that are not scales, which are fp32 in any file."""
        found = {
            t.dtype
            for module in self.modules.values()
            for n, t in module.items()
            if n not in SCALES
        }
        return finest(found)

    def blocks_changed(self) -> set[int]:
        """Return the numbers of the model's blocks that it changes."""
        pattern = re.compile(rf"(?:.*[._])?(?<!llm_adapter[._]){BLOCKS}[._](\d+)[._]")
        found = (pattern.match(module) for module in self.modules)
        return {int(match[1]) for match in found if match}

    @property
    def depths(self) -> dict[str, int]:
        """The depths of the model that it was trained on; empty if it does not say."""
        try:
            return json.loads(self.metadata.get(DEPTHS_KEY, "{}"))
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: {DEPTHS_KEY} in its header is not JSON", _EDITED
            ) from error


def finest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the float dtype of the smallest rounding step; fp32 of none."""
    return min(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


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
    for place, delta in adapter.deltas.items():
        _expressed(delta, place, style)


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
    path, keys = Path(path), find_style(style)
    if drop_norms:
        deltas = {place: delta for place, delta in deltas.items() if delta.group != "norm"}
    tensors: dict[str, Tensor] = {}
    for place, delta in deltas.items():
        for name, tensor in _expressed(delta, place, style).items():
            kept = tensor if name in SCALES or dtype is None else tensor.to(dtype)
            tensors[keys.key(place, name)] = kept.cpu().contiguous()
    metadata = {**(metadata or {}), **_own_metadata(deltas, style)}
    # Those of the file that the metadata came from would not be of these tensors.
    hashes = kohya_hashes(tensors, metadata)
    metadata |= hashes
    if "modelspec.sai_model_spec" in metadata:
        metadata["modelspec.hash_sha256"] = f"0x{hashes['sshs_model_hash']}"
    write_atomically(path, with_sorted_header(save(tensors, metadata)))
    return path


def load_adapter(
    path: str | os.PathLike[str],
    model: nn.Module,
    strength: float = 1.0,
    *,
    allow_unmatched: bool = False,
) -> Adapter:
    """Put the adapter of a file on a model, trainable; its kinds may differ among modules.

    Args:
        path: A safetensors file in any of the styles.
        model: As for `create_adapter`.
        strength: Multiplies the changes.
        allow_unmatched: Leave out, with a warning, tensors that match nothing in the model.

    Raises:
        CheckpointError: No adapter, or of a kind unknown here, or for a model of another depth or
            width, or with tensors that match nothing in this one.
    """
    file = read_adapter_file(path, allow_unmatched=allow_unmatched)
    refuse_other_depth(file, depths(model))
    shapes = {place: _parameter_shapes(module) for place, module in walk(model)}
    deltas = deltas_of(file, PathIndex(place for place, found in shapes.items() if found))
    for place, delta in deltas.items():
        if not delta.shapes.items() <= shapes[place].items():
            raise CheckpointError(
                f"{file.path}: {place} has {shapes[place]}, but the file changes {delta.shapes}",
                _OTHER_MODEL,
            )
    adapter = Adapter(model, {place: deltas[place] for place in shapes if place in deltas})
    adapter.set_strength(strength)
    return adapter


def read_adapter_file(
    path: str | os.PathLike[str], *, allow_unmatched: bool = False
) -> AdapterFile:
    """Read an adapter file of any style.

    Args:
        path: The file.
        allow_unmatched: Leave out, with a warning, tensors of no adapter kind, and later, in
            `deltas_of`, modules that the model does not have.

    Raises:
        CheckpointError: It cannot be read, or holds something else than adapters.
    """
    path, names = Path(path), tensor_names_in_files()
    modules: dict[str, dict[str, Tensor]] = {}
    try:
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
            return AdapterFile(
                path=path,
                modules=modules,
                metadata=file.metadata() or {},
                allow_unmatched=allow_unmatched,
            )
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", "correct the path") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}", "give a whole .safetensors file of an adapter"
        ) from error


def deltas_of(file: AdapterFile, index: PathIndex) -> dict[str, Delta]:
    """Return the deltas of a file by checkpoint name of their module.

    Raises:
        CheckpointError: A module is not in the index, or twice in the file; tensors are of a kind
            unknown here, or do not go together.
    """
    places: dict[str, str] = {}
    unmatched: list[str] = []
    for module in file.modules:
        place = index.find(module)
        if place is None:
            unmatched.append(module)
        elif places.setdefault(place, module) != module:
            raise CheckpointError(f"{file.path} has {place} under two names", _EDITED)
    problem = (
        f"{file.path}: {len(unmatched)} of {len(file.modules)} modules are not in this model: "
        f"{_some(unmatched)}"
    )
    if unmatched and (not file.allow_unmatched or not places):
        raise CheckpointError(
            problem, f"{_OTHER_MODEL}; --allow_unmatched leaves out what matches nothing"
        )
    if unmatched:
        warn(f"{problem}; they are left out")
    return {place: _delta_of(file, module) for place, module in places.items()}


def _delta_of(file: AdapterFile, module: str) -> Delta:
    """Return the delta of one module of a file."""
    tensors = file.modules[module]
    delta_class = delta_class_of(tensors)
    if delta_class is None:
        kinds = sorted({FOREIGN_TENSORS[name] for name in tensors if name in FOREIGN_TENSORS})
        raise CheckpointError(
            f"{file.path}: {module} is of kind {' with '.join(kinds) or 'unknown'} "
            f"({', '.join(sorted(tensors))})",
            f"only {', '.join(kind_names())} can be used here",
        )
    try:
        delta = delta_class.from_file(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {module}: {error.problem}", error.remedy) from error
    unused = tensors.keys() - delta.trained().keys() - {"alpha"}
    if unused:
        raise CheckpointError(
            f"{file.path}: {module} has {', '.join(sorted(unused))} beside what would be used, "
            f"{', '.join(delta.trained())}",
            _EDITED,
        )
    return delta


def _parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's own parameters, those of what is under its wrappers."""
    own = root_module(module).named_parameters(recurse=False)
    return {name: tuple(parameter.shape) for name, parameter in own}


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
    if keys:
        raise CheckpointError(
            f"{path}: {len(keys)} tensors are of no adapter kind: {_some(keys)}",
            "give an adapter's file; a full checkpoint goes where the base model is named",
        )


def _expressed(delta: Delta, place: str, style: str) -> dict[str, Tensor]:
    """Return a delta's tensors for a style, by our names.

    Raises:
        ConfigError: The style has no words for this kind.
    """
    if not find_style(style).plain_lora_only:
        return delta.file_tensors()
    plain = delta.plain_lora()
    if plain is not None:
        return {"lora_A.weight": plain[0], "lora_B.weight": plain[1]}
    raise ConfigError(
        f"style {style} cannot express {place}, which is of kind {kind_name(delta)}",
        "drop the norms when exporting (--drop_norms; the picture will differ), or train without "
        "them (--no-train_norm)"
        if delta.group == "norm"
        else "save in style comfy",
    )


def _own_metadata(deltas: Mapping[str, Delta], style: str) -> dict[str, str]:
    """Return what every adapter file says of itself."""
    ranked = [delta for delta in deltas.values() if delta.rank is not None]
    linear = [delta for delta in deltas.values() if isinstance(delta, LinearDelta)]
    flags = {
        "adapter_dora": any(delta.has_dora for delta in linear),
        "adapter_rs_lora": any(delta.config.rs_lora for delta in linear),
    }
    return {
        **{name: "true" for name, is_set in flags.items() if is_set},
        "format": "pt",
        "adapter_kind": "+".join(sorted({kind_name(delta) for delta in deltas.values()})),
        "adapter_style": style,
        "adapter_rank": ",".join(sorted({str(delta.stated_rank) for delta in ranked})),
        "adapter_alpha": ",".join(sorted({str(delta.alpha) for delta in ranked})),
    }


def _some(names: Sequence[str]) -> str:
    """Return the first few of a list of names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
