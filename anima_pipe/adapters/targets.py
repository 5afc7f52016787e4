"""Which modules an adapter is put on, chosen by their checkpoint names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from anima_pipe.adapters.delta import root_module
from anima_pipe.adapters.inject import walk
from anima_pipe.adapters.norm import is_norm
from anima_pipe.errors import ConfigError

DEFAULT_TARGETS: Final = (
    *(
        f"{attention}.{projection}"
        for attention in ("self_attn", "cross_attn")
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj", "output_proj")
    ),
    *("mlp.layer1", "mlp.layer2", "mlp.0", "mlp.2"),
)
"""Attention and mlp at any depth, under all the names that checkpoints give them."""

TEXT_ADAPTER_PREFIX: Final = "llm_adapter."
"""Beginning of the paths that `train_llm_adapter` is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRules:
    """Which modules of a model are adapted, by their checkpoint names."""

    target_modules: tuple[str, ...] = DEFAULT_TARGETS
    """Linear layers to adapt, each entry one or more with commas between them: `mlp.layer1` is
    every path that ends so, `q_proj` every path whose last name it is, `blocks.0.*` a wildcard for
    the whole path, `re:...` a regular expression found anywhere in the path."""
    include_patterns: tuple[str, ...] = ()
    """Regular expressions of whole paths: linear layers to adapt besides; stronger than exclude."""
    exclude_patterns: tuple[str, ...] = ()
    """Regular expressions of whole paths: linear layers and norms to leave alone."""
    train_norm: bool = True
    """Whether norms that have weights are adapted."""
    train_bias: bool = False
    """Whether the biases of the adapted linear layers train too, as differences."""
    train_llm_adapter: bool = True
    """Whether anything in the text adapter is adapted, whatever the patterns say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """The paths of the modules to adapt, in the model's order."""

    linears: list[str]
    norms: list[str]

    def groups(self) -> dict[str, str]:
        """Return by path which group each belongs to; see `Delta.group`."""
        return {**dict.fromkeys(self.linears, "linear"), **dict.fromkeys(self.norms, "norm")}


def choose_targets(model: nn.Module, rules: TargetRules) -> Targets:
    """Return what the rules choose of a model.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    modules = [(path, root_module(module)) for path, module in walk(model)]
    linears = [path for path, module in modules if isinstance(module, nn.Linear)]
    norms = [path for path, module in modules if is_norm(module)]
    wanted = _matchers("target_modules", _single_targets(rules), target_matcher)
    include = _matchers("include_patterns", rules.include_patterns, regex_matcher)
    exclude = _matchers("exclude_patterns", rules.exclude_patterns, regex_matcher)
    # The default names every layout's layers, so that some of it is idle on any model.
    if rules.target_modules != DEFAULT_TARGETS:
        _refuse_idle(wanted, linears)
    _refuse_idle(include, linears)
    _refuse_idle(exclude, linears + norms)

    def chosen(path: str, by_default: bool) -> bool:
        if path.startswith(TEXT_ADAPTER_PREFIX) and not rules.train_llm_adapter:
            return False
        if any(pattern.matches(path) for pattern in include):
            return True
        return by_default and not any(pattern.matches(path) for pattern in exclude)

    targets = Targets(
        linears=[p for p in linears if chosen(p, any(w.matches(p) for w in wanted))],
        norms=[p for p in norms if chosen(p, rules.train_norm)],
    )
    if not targets.linears and not targets.norms:
        raise ConfigError(
            f"no module of this {type(model).__name__} is left to train",
            "widen target_modules or include_patterns, or exclude less",
        )
    return targets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """A rule about paths as the user wrote it, and what it means."""

    setting: str
    text: str
    matches: Callable[[str], object]


def _matchers(
    setting: str, texts: Sequence[str], meaning: Callable[[str], Callable[[str], object]]
) -> list[_Pattern]:
    """Return the patterns of one setting.

    Raises:
        ConfigError: One of them is not a regular expression.
    """
    try:
        return [_Pattern(setting=setting, text=text, matches=meaning(text)) for text in texts]
    except re.error as error:
        raise ConfigError(
            f"{setting}: {error.pattern!r} is not a regular expression: {error}",
            "write a dot for any character, .* for any text, \\. for a dot",
        ) from error


def _single_targets(rules: TargetRules) -> list[str]:
    """Return the entries of target_modules, one target each."""
    return [
        text.strip()
        for entry in rules.target_modules
        for text in ([entry] if entry.startswith("re:") else entry.split(","))
    ]


def regex_matcher(text: str) -> Callable[[str], object]:
    """Return what tells whether a regular expression is a whole path."""
    return re.compile(text).fullmatch


def target_matcher(text: str) -> Callable[[str], object]:
    """Return what tells whether an entry of target_modules means a path."""
    text = text.removeprefix("transformer.")
    if text.startswith("re:"):
        return re.compile(text.removeprefix("re:")).search
    if "*" in text or "?" in text:
        return lambda path: fnmatch.fnmatchcase(path, text)
    return lambda path: f".{path}".endswith(f".{text}")


def _refuse_idle(patterns: Sequence[_Pattern], paths: Sequence[str]) -> None:
    """Check that every pattern matches something; a misspelt one would pass unseen.

    Raises:
        ConfigError: One matches none of the paths.
    """
    for pattern in patterns:
        if not any(pattern.matches(path) for path in paths):
            raise ConfigError(
                f"{pattern.setting}: {pattern.text!r} matches none of {len(paths)} modules",
                f"paths look like {', '.join(paths[:: max(1, len(paths) // 3)][:3])}",
            )
