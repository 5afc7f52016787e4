"""Ranks and learning rates that differ from module to module, as Kohya's network_args give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRules:
    """Which modules take another rank than the others."""

    network_reg_dims: str = ""
    """`regex=rank,regex=rank`: the first expression that is a module's whole path gives its rank;
    0 leaves the module alone. Alpha stays the same."""

    def __post_init__(self) -> None:
        self.ranks()

    def ranks(self) -> dict[str, int]:
        """Return the rank by pattern.

        Raises:
            ConfigError: The text is not of the form, or a rank is no whole number.
        """
        by_pattern = pattern_values("network_reg_dims", self.network_reg_dims)
        for pattern, value in by_pattern.items():
            if value != int(value) or value < 0:
                raise ConfigError(
                    f"network_reg_dims: {pattern}={value}", "give a whole number, 0 or more"
                )
        return {pattern: int(value) for pattern, value in by_pattern.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRules:
    """Which tensors take another learning rate than the run's."""

    network_reg_lrs: str = ""
    """`regex=rate,regex=rate`: the first expression that is a module's whole path gives its rate;
    norms are modules too."""
    loraplus_lr_ratio: float | None = None
    """LoRA+ (Hayou et al., arXiv:2402.12354): the rate of lora_B, hada_w2_a or lokr_w1 is this many
    times that of the others; 16 is the paper's."""
    loraplus_unet_lr_ratio: float | None = None
    """Kohya's name for the same in a model with trained text encoders; it wins."""

    norm_lr: float | None = None
    """The rate of the norms' weights and biases; None: that of the others. A pattern wins."""

    def __post_init__(self) -> None:
        self.rates()
        if self.norm_lr is not None and self.norm_lr < 0:
            raise ConfigError(f"norm_lr is {self.norm_lr}", "use 0 or more")
        if self.ratio <= 0:
            raise ConfigError(f"loraplus_lr_ratio is {self.ratio}", "use more than 0, such as 16")

    @property
    def ratio(self) -> float:
        """What LoRA+ multiplies by."""
        named = self.loraplus_unet_lr_ratio, self.loraplus_lr_ratio, 1.0
        return next(ratio for ratio in named if ratio is not None)

    def rates(self) -> dict[str, float]:
        """Return the rate by pattern.

        Raises:
            ConfigError: The text is not of the form.
        """
        return pattern_values("network_reg_lrs", self.network_reg_lrs)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRate:
    """A part of the model that is trained at a learning rate of its own."""

    name: str
    pattern: str
    """A regular expression that is the whole path of each module of the part."""
    rate: float
    """0: the part is not trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tensors that share a learning rate and a weight decay."""

    name: str
    parameters: list[nn.Parameter]
    own_rate: float | None
    """None: the run's."""
    ratio: float
    """Multiplies the rate."""
    decays: bool
    """Decay is for changes that are matrices: a norm's or a bias's is left to the gradient, and so
    is what holds the base itself; see `Delta.undecayed`."""

    FASTER: ClassVar[str] = " plus"
    """What stands behind the name of the tensors that LoRA+ trains faster."""

    def rate(self, run_rate: float) -> float:
        """Return the learning rate, given the run's."""
        return (run_rate if self.own_rate is None else self.own_rate) * self.ratio


def group_parameters(
    deltas: Mapping[str, Delta], rules: RateRules, parts: Sequence[PartRate] = ()
) -> list[Group]:
    """Sort the trained tensors by learning rate and decay.

    The groups are called "linear" and "norm", after them the name of the part or the number of the
    pattern that gave the rate, " dora" for DoRA's magnitudes, and " plus" for those that LoRA+
    trains faster. A pattern wins over norm_lr, and that over a part.

    Raises:
        ConfigError: A pattern is the path of no trained module, or a part that is to be trained
            has none, or norm_lr is given and no norm trains.
    """
    patterns = rules.rates()
    refuse_idle("network_reg_lrs", patterns, deltas)
    _refuse_idle_parts(parts, deltas)
    norm_lr = rules.norm_lr
    trains_norms = any(delta.group == "norm" for delta in deltas.values())
    if norm_lr is not None and norm_lr > 0 and not trains_norms:
        raise ConfigError(f"norm_lr is {norm_lr}, but no norm is trained", "remove norm_lr")
    rates = {part.pattern: part.rate for part in parts}
    names = {part.pattern: part.name for part in parts}
    names |= {pattern: f"reg_lr_{number}" for number, pattern in enumerate(patterns)}
    groups: dict[str, Group] = {}
    for path, delta in deltas.items():
        pattern = first_match(patterns, path)
        own_rate = None if pattern is None else patterns[pattern]
        if pattern is None and delta.group == "norm" and norm_lr is not None:
            own_rate = norm_lr
        elif pattern is None and (part := first_match(rates, path)) is not None:
            pattern, own_rate = part, rates[part]
        place = delta.group if pattern is None else f"{delta.group} {names[pattern]}"
        plus = delta.faster if isinstance(delta, LinearDelta) and rules.ratio != 1 else ()
        for name, parameter in delta.trained().items():
            apart = " dora" if name == "dora_scale" else ""
            called = place + apart + (Group.FASTER if name in plus else "")
            group = Group(
                name=called,
                parameters=[],
                own_rate=own_rate,
                ratio=rules.ratio if name in plus else 1.0,
                decays=delta.group != "norm" and name not in delta.undecayed,
            )
            groups.setdefault(called, group).parameters.append(parameter)
    return list(groups.values())


def _refuse_idle_parts(parts: Sequence[PartRate], paths: Collection[str]) -> None:
    for part in parts:
        if part.rate > 0 and not any(re.fullmatch(part.pattern, path) for path in paths):
            raise ConfigError(
                f"{part.name}_lr is {part.rate:g}, but nothing of that part is trained",
                f"remove {part.name}_lr, or take the part in with network_args",
            )


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """Return the first regular expression that is a whole path, or None."""
    return next((pattern for pattern in patterns if re.fullmatch(pattern, path)), None)


def refuse_idle(setting: str, patterns: Collection[str], paths: Collection[str]) -> None:
    """Check that every pattern is some module's path; a misspelt one would pass unseen.

    Raises:
        ConfigError: One is none's.
    """
    for pattern in patterns:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ConfigError(
                f"{setting}: {pattern!r} is the path of none of {len(paths)} trained modules",
                f"paths look like {', '.join(list(paths)[:: max(1, len(paths) // 3)][:3])}",
            )


def pattern_values(setting: str, text: str) -> dict[str, float]:
    """Return the numbers of `regex=number,regex=number` by their regular expressions.

    A comma may be part of an expression: what stands before it then has no `=`.

    Raises:
        ConfigError: Something is no number or no regular expression, or stands alone.
    """
    values: dict[str, float] = {}
    waiting: list[str] = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        waiting.append(piece)
        pattern, found, value = ",".join(waiting).rpartition("=")
        if not found:
            continue
        waiting = []
        try:
            re.compile(pattern)
            values[pattern.strip()] = float(value)
        except (ValueError, re.error) as error:
            raise ConfigError(
                f"{setting}: {pattern}={value}: {error}", f"write {setting}=regex=number,..."
            ) from error
    if waiting:
        raise ConfigError(
            f"{setting}: no number behind {','.join(waiting)!r}",
            f"write {setting}=regex=number,...",
        )
    return values
