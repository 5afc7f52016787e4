"""The values of one command's options, and where each was set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anima_pipe.kohya.findings import Finding, raise_findings
from anima_pipe.kohya.options import DATASET_GROUP, find_option
from anima_pipe.kohya.rows import Option
from anima_pipe.kohya.values import is_blank


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One option as the user wrote it."""

    option: Option
    spelling: str
    given: object
    """As it was written."""
    value: object
    """As it is understood."""
    place: str
    """Such as "train_args.toml line 7" or "command line"."""

    def __str__(self) -> str:
        return f"{self.spelling} ({self.place})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The options of one command: command line over file over default."""

    command: str
    written: Mapping[str, Written]
    """What the user set, by the options' names."""
    defaults: Mapping[str, object]
    """Of every option that the command honours."""
    warnings: tuple[str, ...] = ()
    """What was set without effect, one sentence each."""

    def value(self, name: str, unset: object = None) -> Any:
        """Return an option's value; its type follows from the option's kind.

        Args:
            name: The option's.
            unset: Returned where the option has no value; 0 and false are values.

        Raises:
            KeyError: The command does not honour an option of that name.
        """
        default = self.defaults[name]
        value = self.written[name].value if name in self.written else default
        return unset if value is None else value

    def given(self, name: str) -> str | None:
        """Return where the user set an option, or None where its default holds."""
        return self.written[name].place if name in self.written else None

    def spelling(self, name: str) -> str | None:
        """Return the spelling by which the user set an option, or None."""
        return self.written[name].spelling if name in self.written else None

    def dataset_fallbacks(self) -> dict[str, object]:
        """Return what the user set of the options that fill gaps of dataset.toml."""
        return {
            name: written.value
            for name, written in self.written.items()
            if written.option.group == DATASET_GROUP and name in self.defaults
        }

    def missing(self, *names: str) -> list[Finding]:
        """Return a finding for every one of these options that has no value."""
        return [
            Finding(
                place=self.command,
                problem=option.when_missing or f"{option.name} is required",
                remedy=_remedy(option),
            )
            for option in self.lacking(*names)
        ]

    def lacking(self, *names: str) -> list[Option]:
        """Return those of these options that have no value, nor any that serves as well."""
        return [option for option in map(find_option, names) if option and self._lacks(option)]

    def require(self, *names: str) -> None:
        """Raise a ConfigError that names every one of these options that has no value."""
        raise_findings(self.missing(*names))

    def _lacks(self, option: Option) -> bool:
        return all(is_blank(self.value(name)) for name in (option.name, *option.or_else))


def _remedy(option: Option) -> str:
    named = f"set --{option.name}, or {option.name} in the file of --config_file"
    if not option.fetched_by:
        return named
    return f"run `anima-pipe {option.fetched_by}`, which all commands then know of, or {named}"
