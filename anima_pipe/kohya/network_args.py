"""network_args beside the other options: what changes nothing, and what is said twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, cast

from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.options import find_option
from anima_pipe.kohya.resolved import Resolved, Written

_NO_CONVOLUTIONS: Final = "Anima has no convolutions"

IDLE: Final[Mapping[str, str]] = {
    "conv_dim": _NO_CONVOLUTIONS,
    "conv_alpha": _NO_CONVOLUTIONS,
    "use_tucker": _NO_CONVOLUTIONS,
    "use_cp": _NO_CONVOLUTIONS,
    "use_conv_cp": _NO_CONVOLUTIONS,
    "disable_conv_cp": _NO_CONVOLUTIONS,
    "loraplus_text_encoder_lr_ratio": "Qwen3 is frozen",
}
"""Arguments of Kohya's and LyCORIS's networks that make no other adapter of Anima, and why."""

ALSO_OPTIONS: Final[Mapping[str, str]] = {
    "train_norm": "train_norm",
    "train_llm_adapter": "train_llm_adapter",
    "dropout": "network_dropout",
}
"""Arguments that are options too, and these options' names."""

_WORDS: Final = {
    True: ("1", "true", "yes", "y", "on"),
    False: ("0", "false", "no", "n", "off"),
}


def effective(network_args: Mapping[str, object]) -> dict[str, object]:
    """Return the arguments without those that change nothing."""
    return {name: value for name, value in network_args.items() if name not in IDLE}


def network_arg_warnings(options: Resolved) -> Iterator[str]:
    """Yield what is set without effect."""
    item, given = _given(options)
    for name in given:
        if name in IDLE:
            yield f"{item}: {name} changes nothing: {IDLE[name]}"


def network_arg_findings(options: Resolved) -> Iterator[Finding]:
    """Yield arguments that are options of their own, or that an option contradicts."""
    item, given = _given(options)
    for name, value in given.items():
        assert item is not None
        if name in ALSO_OPTIONS:
            own = options.written.get(ALSO_OPTIONS[name])
            if own is not None and not _says_the_same(value, own.value):
                yield Finding(
                    place=item.place,
                    problem=f"network_args {name}={value} contradicts {own} = {own.given}",
                    remedy="keep one of the two",
                )
        elif find_option(name) is not None:
            yield Finding(
                place=item.place,
                problem=f"network_args {name}={value}: {name} is an option of its own",
                remedy=f"set {name} beside network_args",
            )


def _given(options: Resolved) -> tuple[Written | None, Mapping[str, object]]:
    item = options.written.get("network_args")
    return item, cast("Mapping[str, object]", item.value or {}) if item else {}


def _says_the_same(argument: object, option: object) -> bool:
    if isinstance(option, bool):
        return str(argument).lower() in _WORDS[option]
    return argument == option
