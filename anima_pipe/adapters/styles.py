"""How adapter files name their tensors: three styles that are written, and all that are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from anima_pipe.adapters.foreign import diffusers_path
from anima_pipe.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How one family of programs names the tensors of an adapter."""

    prefix: str
    """Before the module's path."""
    separator: str = "."
    """Between the names of a module's path."""
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Our name of a tensor -> this style's."""
    plain_lora_only: bool = False
    """Whether nothing but lora_A and lora_B is understood, alpha folded into them."""
    read_by_its_program: frozenset[str] | None = None
    """Tensors, by our names, that the program the style is named for reads; None: all there are."""

    def key(self, path: str, name: str) -> str:
        """Return a tensor's key: of the module at `path`, the tensor that we call `name`."""
        place = path.replace(".", self.separator)
        return f"{self.prefix}{place}.{self.renamed.get(name, name)}"


STYLES: Final = {
    "comfy": Style(prefix="diffusion_model."),
    "kohya": Style(
        prefix="lora_unet_",
        separator="_",
        renamed={"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"},
        # Of its networks for this model: lora_anima, loha, and lokr, whose first factor is whole.
        read_by_its_program=frozenset(
            (
                *("alpha", "lora_A.weight", "lora_B.weight"),
                *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
                *("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
            )
        ),
    ),
    "diffusers": Style(prefix="diffusion_model.", plain_lora_only=True),
}

DOTTED_PREFIXES: Final = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "net.",
)
"""What may stand before a dotted path; PEFT writes the first before another."""

UNDERSCORED_PREFIXES: Final = (STYLES["kohya"].prefix, "lycoris_", "lora_transformer_")
"""What stands before a path whose dots became underscores: Kohya's, LyCORIS's, and diffusers' own
scripts' of old."""


def find_style(name: str) -> Style:
    """Return the style of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in STYLES:
        raise ConfigError(f"unknown adapter style {name!r}", f"use one of {', '.join(STYLES)}")
    return STYLES[name]


def split_key(key: str, names: Collection[str]) -> tuple[str, str] | None:
    """Split a key into the module's part and the tensor's name, or return None.

    Args:
        key: As the file has it.
        names: The names that tensors of adapters have, dots in them or not.
    """
    parts = key.split(".")
    for start in range(1, len(parts)):
        name = ".".join(parts[start:])
        if name in names:
            return ".".join(parts[:start]), name
    return None


class PathIndex:
    """The modules of a model, found by what files in any style call them.

    Args:
        paths: Checkpoint names of all modules.

    Raises:
        ConfigError: Two modules would have one name in a file with underscores.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        own = sorted(paths)
        self._dotted = {path: path for path in own}
        self._underscored: dict[str, str] = {}
        for path in own:
            other = self._underscored.setdefault(path.replace(".", "_"), path)
            if other != path:
                raise ConfigError(
                    f"{other} and {path} have one name in a file of style kohya",
                    "this model's adapters cannot be kept in files; report its layout",
                )
        for path in own:
            alias = diffusers_path(path)
            self._dotted.setdefault(alias, path)
            self._underscored.setdefault(alias.replace(".", "_"), path)

    def find(self, part: str, within: str = "") -> str | None:
        """Return the checkpoint name of the module that a file calls `part`, or None.

        Args:
            part: What the file calls it.
            within: The beginning of the paths that the file leaves out, where it is of a part of
                the model alone: `llm_adapter.`.
        """
        for prefix in UNDERSCORED_PREFIXES:
            if part.startswith(prefix):
                name = within.replace(".", "_") + part.removeprefix(prefix)
                return self._underscored.get(name)
        while within + part not in self._dotted:
            prefix = next((p for p in DOTTED_PREFIXES if part.startswith(p)), None)
            if prefix is None:
                return None
            part = part.removeprefix(prefix)
        return self._dotted[within + part]
