"""What `accelerate launch` asks of FSDP, and which part of that is done here.

An adapter trains on a frozen model, so of FSDP only the saving of memory is wanted: the frozen
weights are sharded (`adapters.sharded`), and what trains stays whole on every process, as in
data-parallel training. Optimizer, clipping, averages, saves and states are then the same with and
without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.runtime import launched_rank, warn

ASKED_FOR: Final = "ACCELERATE_USE_FSDP"

UNFIT: Final = {
    "FSDP_OFFLOAD_PARAMS": "set it to false; fp8_base makes the frozen weights smaller",
    "FSDP_ACTIVATION_CHECKPOINTING": "set it to false, and use gradient_checkpointing",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "set it to false, and use gradient_checkpointing",
}
"""What FSDP may be asked for and does not do here, by the launcher's variable; what to do."""

IDLE: Final = {
    "FSDP_AUTO_WRAP_POLICY": None,
    "FSDP_TRANSFORMER_CLS_TO_WRAP": None,
    "FSDP_MIN_NUM_PARAMS": str(10**8),
    "FSDP_BACKWARD_PREFETCH": None,
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_STATE_DICT_TYPE": None,
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_IGNORED_MODULES": None,
}
"""What has no effect here, and what the launcher's variable is where nobody asked for it."""

KEYS: Final = {"FSDP_TRANSFORMER_CLS_TO_WRAP": "fsdp_transformer_layer_cls_to_wrap"}
"""Settings that are not called what their variable is called."""


def asks_for_fsdp(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether a launch asks for FSDP."""
    return _is_set(environment, ASKED_FOR)


def take_fsdp_request(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Tell whether the frozen weights are to be sharded, and take that out of the environment.

    accelerate then sees plain data-parallel processes, and does not shard the model itself.

    Raises:
        ConfigError: FSDP is asked for in a way that is not supported.
    """
    if not asks_for_fsdp(environment):
        return False
    _refuse_other_strategies(environment)
    for variable, remedy in UNFIT.items():
        if _is_set(environment, variable):
            raise ConfigError(
                f"accelerate's {_key(variable)} is true, which is not to be had here", remedy
            )
    idle = [
        _key(variable)
        for variable, unasked in IDLE.items()
        if environment.get(variable, unasked) != unasked
    ]
    if idle and launched_rank().number == 0:
        warn(
            f"accelerate's {', '.join(idle)}: without effect; every frozen linear layer is sharded "
            "and gathered by itself, adapters and states are saved whole"
        )
    del environment[ASKED_FOR]
    return launched_rank().processes > 1


def _refuse_other_strategies(environment: MutableMapping[str, str]) -> None:
    """Refuse every strategy but that which shards the weights fully."""
    if environment.get("FSDP_VERSION", "1") == "1":
        variable, fit = "FSDP_SHARDING_STRATEGY", ("FULL_SHARD", "1")
    else:
        variable, fit = "FSDP_RESHARD_AFTER_FORWARD", ("TRUE",)
    asked = environment.get(variable, fit[0])
    if asked.upper() not in fit:
        raise ConfigError(
            f"accelerate's {_key(variable)} is {asked}: frozen weights are sharded over all "
            "processes, and never kept whole between two passes",
            f"set it to {fit[0] if len(fit) > 1 else 'true'}, or launch with "
            "configs/accelerate/ddp.yaml, which keeps them whole",
        )


def _is_set(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("true", "1")


def _key(variable: str) -> str:
    """Return a setting's name in a launch configuration."""
    return KEYS.get(variable, variable.lower())
