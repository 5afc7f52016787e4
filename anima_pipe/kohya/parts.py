"""Settings of a training's parts, checked by the parts that take them.

Only what the user set is checked, for it takes importing torch; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.kohya import lycoris
from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.network_args import effective
from anima_pipe.kohya.no_network import trains_the_model
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rules import refuses_warmup
from anima_pipe.kohya.table.network_args import KIND_OF_NETWORK, LYCORIS
from anima_pipe.runtime import finite_number

if TYPE_CHECKING:
    from torch.optim import Optimizer

KIND_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = {"networks.lokr": {"lokr_factor": -1}}
"""Where a network starts from other settings than its kind's."""


class AdapterChoice(NamedTuple):
    """The adapter that the options ask for."""

    kind: str
    arguments: dict[str, Any]
    """By the names of `create_adapter`."""


def adapter_choice(options: Resolved) -> AdapterChoice:
    """Return the kind of adapter and its settings.

    Raises:
        ConfigError: LyCORIS's arguments ask for something that is not available here.
    """
    module: str = options.value("network_module")
    network_args: dict[str, Any] = effective(options.value("network_args") or {})
    of_the_run: dict[str, Any] = {
        "network_dim": options.value("network_dim"),
        "network_alpha": options.value("network_alpha"),
        "dropout": options.value("network_dropout", unset=0.0),
    }
    parts = ("train_norm", "train_llm_adapter")
    if module == LYCORIS:
        kind, arguments = lycoris.lycoris_adapter(network_args)
        set_by_user = {name: options.value(name) for name in parts if options.given(name)}
        return AdapterChoice(kind, of_the_run | arguments | set_by_user)
    arguments = {name: options.value(name) for name in parts}
    arguments |= KIND_DEFAULTS.get(module, {}) | network_args
    return AdapterChoice(KIND_OF_NETWORK[module], of_the_run | arguments)


class _Check(NamedTuple):
    """One part, and the options whose values it checks, the likeliest culprit first."""

    part: Callable[[Resolved], object]
    options: tuple[str, ...]


def part_findings(options: Resolved) -> Iterator[Finding]:
    """Yield what the parts of a training would object to."""
    for check in _CHECKS:
        place = next(filter(None, map(options.given, check.options)), None)
        if place is None:
            continue
        try:
            check.part(options)
        except (ConfigError, CheckpointError) as error:
            yield Finding(
                place=place,
                problem=error.problem,
                remedy=error.remedy,
                here_only=_is_of_this_machine(check, options),
            )


def _is_of_this_machine(check: _Check, options: Resolved) -> bool:
    """Tell whether another machine might not object: it has the package, or the state."""
    if check.part is _check_state:
        return not Path(options.value("resume")).exists()
    return check.part is _check_optimizer and not _is_installed(options)


def _check_adapter(options: Resolved) -> None:
    from anima_pipe.adapters.adapter import read_settings

    if trains_the_model(options):
        return
    kind, arguments = adapter_choice(options)
    rank, alpha = arguments.pop("network_dim"), arguments.pop("network_alpha")
    read_settings(kind, rank, alpha, arguments)


def _check_schedule(options: Resolved) -> None:
    from anima_pipe.kohya.schedule import schedule_config
    from anima_pipe.optimizing.checks import check_schedule

    if refuses_warmup(options) or options.value("lr_scheduler") == "adafactor":
        # What may be wrong with these is the rules' to say.
        return
    config = schedule_config(options)
    try:
        optimizer = _check_optimizer(options)
    except ConfigError:
        # And this the optimizer's check's.
        return
    check_schedule(config, optimizer)


def _check_optimizer(options: Resolved) -> Optimizer:
    from anima_pipe.kohya.optimizer import optimizer_config
    from anima_pipe.optimizing.checks import check_optimizer

    return check_optimizer(optimizer_config(options), options.value("learning_rate"))


def _is_installed(options: Resolved) -> bool:
    """Tell whether the optimizer's package is there; one of no name is nowhere to be installed."""
    from anima_pipe.optimizing.optimizers import find_optimizer

    try:
        module = find_optimizer(options.value("optimizer_type")).module
    except ConfigError:
        return True
    return find_spec(module.partition(".")[0]) is not None


def _check_objective(options: Resolved) -> None:
    from anima_pipe.kohya.objective import objective_config

    objective_config(options)


def _check_average(options: Resolved) -> None:
    from anima_pipe.kohya.outputs import ema_decay

    ema_decay(options)


def base_weights(options: Resolved) -> tuple[tuple[Path, float], ...]:
    """Pair the adapters to merge first with their strengths; one without takes 1, as in Kohya.

    Raises:
        ConfigError: There are more strengths than files, or one is no number.
    """
    paths: tuple[str, ...] = tuple(options.value("base_weights") or ())
    given: tuple[str, ...] = tuple(options.value("base_weights_multiplier") or ())
    if len(given) > len(paths):
        raise ConfigError(
            f"base_weights_multiplier has {len(given)} values for {len(paths)} base_weights",
            "give one strength for each file",
        )
    try:
        strengths = [finite_number(strength) for strength in given]
    except ValueError as error:
        raise ConfigError(f"base_weights_multiplier: {error}", "give numbers") from error
    strengths += [1.0] * (len(paths) - len(strengths))
    return tuple((Path(path), strength) for path, strength in zip(paths, strengths, strict=True))


def _check_base_weights(options: Resolved) -> None:
    base_weights(options)


def _check_state(options: Resolved) -> None:
    from anima_pipe.kohya.outputs import state_settings

    if options.value("output_dir"):
        state_settings(options)


_CHECKS: Final = (
    _Check(
        _check_adapter,
        ("network_args", "network_dropout", "network_module", "network_dim", "network_alpha"),
    ),
    _Check(_check_optimizer, ("optimizer_args", "optimizer_type")),
    _Check(_check_schedule, ("lr_scheduler_type", "lr_scheduler_args", "lr_scheduler")),
    _Check(_check_objective, ("min_timestep", "max_timestep")),
    _Check(_check_average, ("ema_decay",)),
    _Check(_check_base_weights, ("base_weights_multiplier",)),
    _Check(_check_state, ("resume",)),
)
