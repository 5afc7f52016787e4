"""Ranks and learning rates that differ from module to module, as Kohya's network_args give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.errors import ConfigError
from anima_pipe.runtime import finite_number
from anima_pipe.trained import Group, PartRate, part_of, refuse_idle_parts


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
    norms are modules too. 0 leaves the module alone."""
    loraplus_lr_ratio: float | None = None
    """LoRA+ (Hayou et al., arXiv:2402.12354): the rate of lora_B, hada_w2_a or lokr_w1 is this many
    times that of the others; 16 is the paper's."""
    loraplus_unet_lr_ratio: float | None = None
    """Kohya's name for the same in a model with trained text encoders; it wins."""

    norm_lr: float | None = None
    """The rate of the norms' weights and biases; None: that of the others; 0 leaves them alone. A
    pattern wins."""

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
class Rates:
    """The learning rates of a run: its own, its parts' and those that `RateRules` give.

    A pattern wins over norm_lr, and that over a part.
    """

    rules: RateRules = field(default_factory=RateRules)
    parts: tuple[PartRate, ...] = ()
    run_rate: float | None = None
    """Of what has none of its own; None: whatever it is, it is not 0."""

    def own(self, path: str, group: str) -> tuple[str, float] | None:
        """Return the name and the rate of a module that does not take the run's.

        Args:
            path: Of the module.
            group: "linear" or "norm"; see `Delta.group`.
        """
        patterns = self.rules.rates()
        if (pattern := first_match(patterns, path)) is not None:
            return f"reg_lr_{[*patterns].index(pattern)}", patterns[pattern]
        if group == "norm" and self.rules.norm_lr is not None:
            return "", self.rules.norm_lr
        part = part_of(self.parts, path)
        return (part.name, part.rate) if part else None

    def untrained(self, groups: Mapping[str, str]) -> set[str]:
        """Return which modules are left alone: their rate is 0.

        A run's own rate of 0 leaves alone what has no other where something else trains. Without
        that it is a run that changes nothing, as asked.

        Args:
            groups: The group of each module, by path.

        Raises:
            ConfigError: No module is left, or a pattern is the path of none.
        """
        refuse_idle("network_reg_lrs", self.rules.rates(), groups)
        found = {path: self.own(path, group) for path, group in groups.items()}
        own = {path: rate[1] for path, rate in found.items() if rate is not None}
        untrained = {path for path, rate in own.items() if rate == 0}
        if self.run_rate == 0 and len(untrained) < len(own):
            untrained |= groups.keys() - own.keys()
        if len(untrained) == len(groups):
            raise ConfigError(
                f"the learning rates of all {len(groups)} modules are 0: nothing is left to train",
                "raise the learning rate of a part, or leave one out for learning_rate to count",
            )
        return untrained


def group_parameters(deltas: Mapping[str, Delta], rates: Rates) -> list[Group]:
    """Sort the tensors that train by learning rate and decay.

    The groups are called "linear" and "norm", after them the name of the part or the number of the
    pattern that gave the rate, " dora" for DoRA's magnitudes, and " plus" for those that LoRA+
    trains faster. Decay is for changes that are matrices: a norm's or a bias's is left to the
    gradient, and so is what holds the base itself; see `Delta.undecayed`.

    Raises:
        ConfigError: A pattern is the path of no trained module, or a part that is to be trained
            has none, or norm_lr is given and no norm trains.
    """
    _refuse_idle_rates(deltas, rates)
    ratio = rates.rules.ratio
    groups: dict[str, Group] = {}
    for path, delta in deltas.items():
        name, own_rate = rates.own(path, delta.group) or ("", None)
        place = f"{delta.group} {name}" if name else delta.group
        plus = delta.faster if isinstance(delta, LinearDelta) and ratio != 1 else ()
        for tensor, parameter in delta.trained().items():
            if not parameter.requires_grad:
                continue
            apart = {"dora_scale": " dora", "diff_b": " bias"}.get(tensor, "")
            called = place + apart + (Group.FASTER if tensor in plus else "")
            group = Group(
                name=called,
                parameters=[],
                own_rate=own_rate,
                ratio=ratio if tensor in plus else 1.0,
                decays=delta.group != "norm" and tensor not in ("diff_b", *delta.undecayed),
            )
            groups.setdefault(called, group).parameters.append(parameter)
    return list(groups.values())


def _refuse_idle_rates(deltas: Mapping[str, Delta], rates: Rates) -> None:
    """Refuse rates above 0 of what is not there; those of 0 have seen to it themselves."""
    rules = rates.rules
    refuse_idle("network_reg_lrs", [p for p, rate in rules.rates().items() if rate], deltas)
    refuse_idle_parts(rates.parts, deltas, "take the part in with network_args")
    trains_norms = any(delta.group == "norm" for delta in deltas.values())
    if rules.norm_lr is not None and rules.norm_lr > 0 and not trains_norms:
        raise ConfigError(f"norm_lr is {rules.norm_lr}, but no norm is trained", "remove norm_lr")


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
            values[pattern.strip()] = finite_number(value)
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
