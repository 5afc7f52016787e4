"""The proof that a written file says what it should, by ComfyUI's rules.

What it should say is known in two ways: by a delta, as it trained or was computed, and, where
there is a file that it comes from, by what ComfyUI makes of that file's own tensors. A comparison
passes where a difference is small, and not where none is large: NaN is neither.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor

from anima_pipe.adapters.delta import SCALES
from anima_pipe.adapters.extract import read_tensor
from anima_pipe.adapters.reading import AdapterFile, places_in
from anima_pipe.errors import CheckpointError
from anima_pipe.export.comfy import (
    DIFFERENCE_NAMES,
    Tensors,
    anima_modules,
    anima_paths,
    changed_shapes,
    parameter_change,
    read_by_comfyui,
    tensors_by_module,
)
from anima_pipe.weights.files import StoredTensor, check_names, read_header
from anima_pipe.weights.writing import DTYPES, is_finite, not_finite, pieces

LEAST_GAIN: Final = 1e-4
"""By how much at least DoRA's scale changes the weight that a file is tried on: a file that lacks
it is to be told from one that has it, even where nothing was trained."""

TOLERANCES: Final = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.float16: 8e-3,
    torch.bfloat16: 6e-2,
}
"""Largest difference that saving in a dtype explains, relative to the layer's largest change:
eight of its rounding steps, for a change is a sum of products of rounded numbers."""

_REPORT: Final = "do not use the file; report this with the command that wrote it"
_FINER: Final = "write it in bf16 or float: fp16 has few digits for numbers below 6e-5"


class Change(Protocol):
    """What a module's parameters ought to be changed by: a `Delta`, or a `FileModule`."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102 - see Delta
    @property
    def has_dora(self) -> bool: ...  # noqa: D102
    def weight_changes(self, weights: Tensors, /) -> dict[str, Tensor]: ...  # noqa: D102
    def change_norm(self) -> float: ...  # noqa: D102
    def file_tensors(self) -> dict[str, Tensor]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class FileModule:
    """What ComfyUI makes of a file's tensors of one module: the counterpart of an adapter's delta.

    Args:
        tensors: By their names behind the module's, as `tensors_by_module` gives them.
    """

    tensors: Tensors

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that are changed, by name."""
        return changed_shapes(self.tensors)

    @property
    def has_dora(self) -> bool:
        """Whether the change depends on the weight."""
        return "dora_scale" in self.tensors

    def weight_changes(self, weights: Tensors, /) -> dict[str, Tensor]:
        """Return the change of each parameter given, at strength 1, in the dtype of the weights."""
        given = self.shapes.keys() & weights.keys()
        return {name: parameter_change(name, weights[name], self.tensors) for name in given}

    def change_norm(self) -> float:
        """Return the norm of all changes together, before DoRA rescales them."""
        plain = FileModule({n: t for n, t in self.tensors.items() if n != "dora_scale"})
        zeros = {name: torch.zeros(()).expand(shape) for name, shape in plain.shapes.items()}
        changes = plain.weight_changes(zeros).values()
        return sum(change.norm().item() ** 2 for change in changes) ** 0.5

    def file_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that have an effect, by name."""
        has_factors = self.tensors.keys() - {"alpha", *DIFFERENCE_NAMES}
        return {n: t for n, t in self.tensors.items() if has_factors or n != "alpha"}


def is_norm(module: FileModule) -> bool:
    """Tell whether a file's tensors of a module change the weight of a norm."""
    return len(module.shapes.get("weight", ())) == 1


def file_modules(file: AdapterFile) -> dict[str, FileModule]:
    """Return what ComfyUI makes of an adapter file's own tensors, by module.

    They are read again, apart from our reader, so that comparing the two finds a misreading. Ours
    is relied on for what ComfyUI passes over: names of other programs, and what stands beside the
    file.

    Raises:
        CheckpointError: A tensor lacks its partner, or is there twice.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for name, place in places_in(file, anima_paths()).items():
        if place is not None:
            modules[place] = dict(file.modules[name])
    found, _passed_over = read_by_comfyui(load_file(file.path), anima_modules())
    for place, tensors in found.items():
        modules.setdefault(place, {}).update(tensors)
    return {place: FileModule(tensors) for place, tensors in modules.items()}


@torch.no_grad()
def verify_export(
    path: str | os.PathLike[str], expected: Mapping[str, Change], *, folded: bool = False
) -> float:
    """Compare a file, applied by ComfyUI's rules, with what it should change.

    One layer's change is in memory at a time. It is compared without the weight that it is added
    to, whose rounding would hide a difference; that of DoRA, which depends on the weight, on drawn
    weights in float64. The numbers of each tensor are compared besides: what one of them adds to a
    layer may be less than the rounding of all others.

    Args:
        path: The file, of style comfy, kohya or diffusers.
        expected: What it should change, by module path: `Adapter.deltas`, or `file_modules`.
        folded: The file's style has no alpha: it is folded into B.

    Returns:
        The largest difference of all layers, relative to the largest change of its layer.

    Raises:
        CheckpointError: It is more than rounding, a tensor is missing or there twice, or ComfyUI
            would pass over one.
    """
    read_header(Path(path))  # Of two entries of one name, load_file takes one and says nothing.
    by_module = tensors_by_module(load_file(path), expected.keys())
    errors: dict[str, float] = {}
    for module, change in expected.items():
        tensors = by_module.get(module, {})
        errors[module] = change_error(change, tensors)
        # Scales are exact in a file of any dtype, and excuse nothing.
        dtypes = [tensor.dtype for name, tensor in tensors.items() if name not in SCALES]
        tolerance = max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=0.0)
        if not errors[module] <= tolerance:
            problem = f"the change of {module} is off by {errors[module]:.1e} of its size"
            if _is_rounding(module, change, tensors, folded=folded):
                raise CheckpointError(f"{problem} by rounding alone", _FINER)
            raise CheckpointError(problem, _REPORT)
        _refuse_other_numbers(module, change.file_tensors(), tensors, folded=folded)
    return max(errors.values(), default=0.0)


def change_error(change: Change, tensors: Tensors) -> float:
    """Return the difference between a change and what a file's tensors make of its module.

    Returns:
        The largest difference, relative to the largest element of the change; infinite if there is
        one although nothing should change, NaN if either holds a number that is not finite.
    """
    weights = trial_weights(change)
    errors = [
        difference(parameter_change(name, weights[name], tensors), wanted.cpu())
        for name, wanted in change.weight_changes(weights).items()
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors, default=0.0)


def trial_weights(change: Change) -> dict[str, Tensor]:
    """Return weights on which a change shows all that its tensors do.

    Returns:
        By parameter: zeros, fp32. For DoRA, whose change is a share of the weight, one in float64
        that is as large as its scale says but for a difference, half as large as what its matrices
        add: neither hides an error of the other.
    """
    zeros = {name: torch.zeros(()).expand(shape) for name, shape in change.shapes.items()}
    if not change.has_dora:
        return zeros
    scale = change.file_tensors()["dora_scale"].double().cpu()
    drawn = torch.randn(change.shapes["weight"], generator=torch.Generator().manual_seed(0))
    by_row = scale.shape[0] == drawn.shape[0]
    norms = drawn.double().norm(dim=1 if by_row else 0, keepdim=True)
    size = scale.norm().item()
    gain = max(LEAST_GAIN, change.change_norm() / (2 * size)) if size else LEAST_GAIN
    return {**zeros, "weight": drawn.double() * (scale.abs() / norms / (1 + gain))}


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference between two tensors, relative to the largest number expected.

    Returns:
        Infinite where the shapes differ, or zeros were expected and are not there; NaN where a
        number is not finite.
    """
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    largest, off = _largest(expected), _largest(found - expected)
    if largest:
        return off / largest
    return off and off * math.inf


def _largest(tensor: Tensor) -> float:
    """Return the largest magnitude in a tensor, without a copy of it; NaN if one is in it."""
    low, high = torch.aminmax(tensor)
    # Both are NaN where a number is.
    return max(abs(low.item()), abs(high.item()))


def _is_rounding(module: str, change: Change, found: Tensors, *, folded: bool) -> bool:
    """Tell whether a file holds the right numbers, and only its dtype is too coarse for them."""
    exact = change.file_tensors()
    try:
        _refuse_other_numbers(module, exact, found, folded=folded)
    except CheckpointError:
        return False
    exact = _with_alpha_in_b(exact) if folded else exact
    has_alpha = "alpha" not in exact or torch.equal(exact["alpha"], found["alpha"])
    return has_alpha and change_error(change, exact) <= TOLERANCES[torch.float32]


def _refuse_other_numbers(
    module: str, expected: Tensors, found: Tensors, *, folded: bool = False
) -> None:
    """Check that a module's tensors are the expected ones, rounded to the file's dtype, and finite.

    Raises:
        CheckpointError: One is missing or holds other numbers; it is named.
    """
    if folded:
        expected = _with_alpha_in_b(expected)
    if missing := expected.keys() - found.keys():
        raise CheckpointError(f"{module} lacks {', '.join(sorted(missing))}", _REPORT)
    if spoilt := not_finite(found):
        raise CheckpointError(f"not every number is finite in {module}.{spoilt[0]}", _REPORT)
    # Another alpha that is not heeded changes nothing; one that is shows in the change.
    for name in expected.keys() - {"alpha"}:
        dtype = found[name].dtype
        wanted = expected[name].cpu().float().to(dtype)
        # A product may come out to either side of the middle of two numbers.
        step = torch.finfo(dtype).eps if folded else 0.0
        same = (found[name].double() - wanted.double()).abs() <= step * wanted.double().abs()
        if found[name].shape != wanted.shape or not same.all():
            raise CheckpointError(f"{module}.{name} holds other numbers than it should", _REPORT)


def _with_alpha_in_b(tensors: Tensors) -> dict[str, Tensor]:
    """Return a LoRA's tensors as styles without alpha have them."""
    down, up = (tensors[f"lora_{name}.weight"].float() for name in "AB")
    scale = tensors["alpha"].float() / down.shape[0] if "alpha" in tensors else 1.0
    return {"lora_A.weight": down, "lora_B.weight": up * scale}


@torch.no_grad()
def verify_checkpoint(
    path: Path, base: Path, expected: Mapping[str, Change], strength: float
) -> float:
    """Compare a checkpoint with its base and with what an adapter should change in it.

    One tensor is in memory at a time. A number may differ by the rounding of its dtype, and by
    what the order of sums makes of the change.

    Args:
        path: The checkpoint.
        base: What it was made of, with the same names.
        expected: What changes each tensor that changes, by its name in the base.
        strength: Multiplies the changes.

    Returns:
        The largest difference of all changed tensors, relative to their largest number.

    Raises:
        CheckpointError: A number is another, or a tensor is missing or too many; it is named.
    """
    written, stored = read_header(path), read_header(base)
    shapes = [{n: t.shape for n, t in tensors.items()} for tensors in (stored, written)]
    check_names(path, f"{base} with an adapter", _REPORT, expected=shapes[0], found=shapes[1])
    largest = 0.0
    for name, tensor in stored.items():
        if name in expected:
            error = _baked_error(
                name, (base, tensor), (path, written[name]), expected[name], strength
            )
            largest = max(largest, error)
        elif not _is_copied((base, tensor), (path, written[name])):
            raise CheckpointError(f"{name} holds other numbers than the base's", _REPORT)
    return largest


Stored = tuple[Path, StoredTensor]
"""A tensor in its file."""


def _baked_error(
    name: str, before: Stored, after: Stored, change: Change, strength: float
) -> float:
    """Return how far a changed tensor is from what it should be; see `verify_checkpoint`."""
    parameter = name.rpartition(".")[2]
    weight, found = read_tensor(*before), read_tensor(*after)
    added = strength * change.weight_changes({parameter: weight})[parameter]
    wanted = weight + added
    rounding = torch.finfo(DTYPES[after[1].dtype])
    allowed = wanted.abs() * max(rounding.eps, 1e-6)
    allowed += 1e-5 * _largest(added) + rounding.tiny * rounding.eps
    is_sound = found.shape == wanted.shape and is_finite(wanted)
    if not is_sound or not ((found - wanted).abs() <= allowed).all():
        raise CheckpointError(
            f"{name} is off by {difference(found, wanted):.1e} of its size from what ComfyUI makes "
            "of it",
            _REPORT,
        )
    return difference(found, wanted)


def _is_copied(before: Stored, after: Stored) -> bool:
    """Tell whether a tensor is the base's, in whatever dtype."""
    if before[1].dtype != after[1].dtype:
        dtype = DTYPES[after[1].dtype]
        return torch.equal(read_tensor(*after).to(dtype), read_tensor(*before).to(dtype))
    with before[0].open("rb") as base, after[0].open("rb") as written:
        pairs = zip(pieces(base, before[1]), pieces(written, after[1]), strict=True)
        return all(first == second for first, second in pairs)
