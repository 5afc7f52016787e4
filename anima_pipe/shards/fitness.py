"""Three truths of a sample compared: its sidecar, its bytes' own header, and what is trained on.

Checksums tell that bytes are those that were written, not that they are what samples are: whoever
wrote them, or their sidecar, may have meant another tensor.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

from anima_pipe.records import LATENT_CHANNELS
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.sample import TensorPlace, header_places

DAMAGED: Final = "damaged: its bytes do not have their checksum"

_FLOATS: Final = ("F16", "BF16", "F32")
_ANY: Final = range(1, sys.maxsize)
_ANY_OR_NONE: Final = range(sys.maxsize)
_CHANNELS: Final = range(LATENT_CHANNELS, LATENT_CHANNELS + 1)


class WrongSampleError(ValueError):
    """A sample that is not what was written, or not what samples are; the text says what is wrong.

    It completes "sample ... is": "damaged: ...", "unfit: tensor latent is ...".
    """


@dataclass(frozen=True, slots=True)
class _Expected:
    """What one tensor of a sample is."""

    dtypes: tuple[str, ...]
    axes: tuple[range, ...]
    shown: str


_EXPECTED: Final = {
    "latent": _Expected(_FLOATS, (_CHANNELS, _ANY, _ANY), f"Float[{LATENT_CHANNELS}, H, W]"),
    "mask": _Expected(_FLOATS, (_ANY, _ANY), "Float[H, W]"),
    "qwen_hidden": _Expected(_FLOATS, (_ANY_OR_NONE, _ANY), "Float[Lq, S]"),
    "t5_ids": _Expected(("I32",), (_ANY,), "I32[Lt]"),
}
"""By the names of `anima_pipe.shards.contents.TENSORS`."""

_EXPONENTS: Final = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
"""The bits that are all set in NaN and infinity, and in nothing else."""


def misfit(name: str, dtype: str, shape: tuple[int, ...]) -> str | None:
    """Return why a tensor is not what is trained on; None: it is, or nobody here trains on it."""
    expected = _EXPECTED.get(name)
    if expected is None:
        return None
    if (
        dtype in expected.dtypes
        and len(shape) == len(expected.axes)
        and all(size in axis for size, axis in zip(shape, expected.axes, strict=True))
    ):
        return None
    return f"tensor {name} is {_shown(dtype, shape)}, not {expected.shown}"


def is_finite(content: bytes | memoryview, dtype: str) -> bool:
    """Tell whether a tensor's bytes hold neither NaN nor infinity.

    Args:
        content: Of the tensor.
        dtype: Safetensors' name; integers are always finite.
    """
    import numpy as np  # here: whoever opens a sound cache has no need of it

    if dtype not in _EXPONENTS or not len(content):
        return True
    kind, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(content, kind)
    # Without the sign the bits of a float are in its order, and what is not finite comes last.
    magnitude = bits & bits.dtype.type(2 ** (8 * bits.itemsize - 1) - 1)
    return int(magnitude.max()) < exponent


def fitting_places(payload: bytes | memoryview) -> dict[str, TensorPlace]:
    """Read off a sample's own header where its tensors are, if they are what is trained on.

    Args:
        payload: The safetensors member.

    Raises:
        WrongSampleError: They are not, or hold NaN or infinity.
    """
    try:
        places = header_places(payload)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongSampleError("unfit: it is not safetensors") from error
    for name, place in places.items():
        if wrong := misfit(name, place.dtype, place.shape):
            raise WrongSampleError(f"unfit: {wrong}")
        if not is_finite(payload[place.offset : place.end], place.dtype):
            raise WrongSampleError(f"unfit: tensor {name} holds NaN or infinite values")
    return places


def refuse_differences(index: ShardIndex, row: int, payload: memoryview) -> None:
    """Check that a sample's sidecar says of its tensors what their own header says, and that fits.

    Args:
        index: Of the shard, as the sidecar has it.
        row: Of the sample.
        payload: Its safetensors member.

    Raises:
        WrongSampleError: Something differs, or is not what is trained on.
    """
    places = fitting_places(payload)
    for name in index.tensors.keys() | places.keys():
        if name not in index.tensors or name not in places:
            raise WrongSampleError(f"unfit: tensor {name} is not in both, shard and sidecar")
        columns, place = index.tensors[name], places[name]
        offset = index.payloads.offset[row] + place.offset
        if (*columns.kind(row), columns.offset[row]) != (place.dtype, place.shape, offset):
            said = f"{_shown(*columns.kind(row))} at {columns.offset[row]}"
            raise WrongSampleError(
                f"unfit: tensor {name} is {_shown(place.dtype, place.shape)} at {offset}, and its "
                f"sidecar says {said}"
            )


def _shown(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}{list(shape)}"
