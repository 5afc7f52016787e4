"""LyCORIS's network module for Kohya's scripts: what its network_args mean for Anima.

Facts of lycoris-lora 4: its presets reach, of Anima, every linear layer of the transformer, that of
the text adapter's blocks where train_llm_adapter asks for it, and norms where train_norm does;
neither is asked for unless said. Its factor is -1 and its algorithm LoRA unless said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from anima_pipe.errors import ConfigError

ALGORITHMS: Final[Mapping[str, str]] = {
    "lora": "lora",
    "locon": "lora",
    "loha": "loha",
    "lokr": "lokr",
}
"""LyCORIS's names of algorithms, and the kinds of adapter that they are on linear layers."""

ALL_LINEARS: Final = (
    "re:^(x_embedder|t_embedder|blocks|final_layer)\\.",
    "re:^llm_adapter\\.blocks\\.",
)
"""What its presets reach of Anima; whether the text adapter is trained is another setting."""

PRESETS: Final = ("full", "full-lin", "attn-mlp", "unet-only", "unet-transformer-only")
"""Its presets that differ in other models, and are one and the same for Anima."""

OF_LOKR: Final[Mapping[str, str]] = {
    "factor": "lokr_factor",
    "full_matrix": "lokr_full_matrix",
    "decompose_both": "lokr_decompose_both",
}
"""Settings of LoKr, by what they are called here."""

OF_OTHERS: Final[Mapping[str, tuple[object, ...]]] = {
    "bypass_mode": (True, False),
    "block_size": (),
    "train_t5xxl": (False,),
    "use_scalar": (False,),
    "constraint": (0,),
    "constrain": (0,),
    "rescaled": (False,),
    "rank_dropout_scale": (False,),
    "unbalanced_factorization": (False,),
}
"""Settings that are none here, and the values at which that makes no difference; (): any value,
for it belongs to an algorithm that is refused."""


def lycoris_adapter(network_args: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """Return the kind of adapter and the settings that LyCORIS's network_args mean.

    Raises:
        ConfigError: An algorithm, a preset or a setting is not available here.
    """
    arguments: dict[str, Any] = {
        name: value for name, value in network_args.items() if name not in ("algo", "preset")
    }
    for name in OF_OTHERS.keys() & arguments.keys():
        harmless, value = OF_OTHERS[name], arguments.pop(name)
        if harmless and value not in harmless:
            raise ConfigError(
                f"network_args {name}={value} of LyCORIS is not available here",
                f"remove {name}, or train with LyCORIS itself",
            )
    kind = _kind(network_args.get("algo") or "lora")
    _check_preset(network_args.get("preset") or "full")
    defaults: dict[str, Any] = {"train_norm": False, "train_llm_adapter": False}
    if kind == "lokr":
        defaults["lokr_factor"] = -1
        arguments = {OF_LOKR.get(name, name): value for name, value in arguments.items()}
    if not {"target_modules"} & arguments.keys():
        defaults["target_modules"] = ALL_LINEARS
    return kind, defaults | arguments


def _kind(algorithm: object) -> str:
    name = str(algorithm).lower()
    if name not in ALGORITHMS:
        raise ConfigError(
            f"network_args algo={algorithm}: that algorithm of LyCORIS is not available here",
            f"use one of {', '.join(ALGORITHMS)}",
        )
    return ALGORITHMS[name]


def _check_preset(preset: object) -> None:
    if preset not in PRESETS:
        raise ConfigError(
            f"network_args preset={preset} names nothing that Anima has",
            f"use one of {', '.join(PRESETS)}, or say what is trained by target_modules=self_attn",
        )
