"""The custom_attributes of a subset: what Kohya's training for Anima reads of them, one offset."""

from __future__ import annotations

from typing import Final, cast

from anima_pipe.kohya.options import nearest_name
from anima_pipe.kohya.values import UnfitValueError, is_number

SAMPLING: Final = "timestep_sampling"
OFFSET: Final = "offset"

_OF_OTHER_MODELS: Final = {
    "diff_output_preservation": "use regularisation pictures (is_reg) to keep what the base knows",
}
"""Attributes that Kohya's training of other models reads, and what to use here instead."""


def sigma_offset(attributes: object) -> float:
    """Return timestep_sampling.offset, 0 where it is not set.

    Raises:
        UnfitValueError: There is another attribute, which would be without effect, or the offset
            is no number.
    """
    table = cast("dict[str, object]", attributes)
    for name in table:
        if name in _OF_OTHER_MODELS:
            raise UnfitValueError(
                f"{name} is refused: Kohya's training for Anima does not read it either",
                _OF_OTHER_MODELS[name],
            )
    _refuse_others(table, SAMPLING)
    sampling = table.get(SAMPLING, {})
    if not isinstance(sampling, dict):
        raise UnfitValueError(
            f"{SAMPLING} is not a table", f"write {SAMPLING} = {{ offset = 0.2 }}"
        )
    settings = cast("dict[str, object]", sampling)
    _refuse_others(settings, OFFSET, f"{SAMPLING}.")
    offset = settings.get(OFFSET, 0.0)
    if not is_number(offset):
        raise UnfitValueError(
            f"{SAMPLING}.{OFFSET} is {offset!r}, which is not a number",
            "write a number from -0.5 to 0.5; below 0 trains more on clean latents",
        )
    return float(offset)


def _refuse_others(table: dict[str, object], known: str, prefix: str = "") -> None:
    for name in table:
        if name != known:
            near = nearest_name(name, (known,))
            raise UnfitValueError(
                f"{prefix}{name} is an attribute that nothing reads",
                f"did you mean {prefix}{near}?" if near else "remove it",
            )
