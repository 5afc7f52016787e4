"""What the header of an adapter file says, and what of it goes on to files made of this one.

of the tensors   adapter_*, ss_network_*, hashes: said anew of the tensors that are written, or not
                 at all, as the settings of a network
of the file      title and output name are the new file's; comment, hint and date, the first's, go
of the author    author, license, tags, trigger phrases, and the names of the base: joined
of the run       all else of Kohya's (ss_*) and of modelspec.*: kept where all sources say the same
of nobody known  fields of other programs go

A file that holds the same adapter, in another style or dtype, is the same to its author and keeps
all but what is of the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from anima_pipe.adapters.delta import Delta
from anima_pipe.adapters.hashes import LEGACY_BYTES, LEGACY_OFFSET, legacy_hash
from anima_pipe.adapters.linear import LinearDelta
from anima_pipe.adapters.registry import kind_name
from anima_pipe.encoders.fingerprints import file_digest
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.plain_text import json_text, parsed_json

DEPTHS_KEY: Final = "model_depths"
"""The lengths of the model's lists of layers, JSON. An adapter fits one depth only."""
MADE_OF_KEY: Final = "made_of"
"""The command that made a file of others, and these: JSON."""

BASE_VERSION: Final = "anima"
ARCHITECTURE: Final = "anima-preview/lora"
"""Kohya's name for adapters of every kind on every release."""
SPEC_VERSION: Final = "1.0.1"
"""Of the specification of modelspec.*."""
NETWORK_MODULES: Final = {
    "lora": "networks.lora_anima",
    "lokr": "networks.lokr_anima",
    "loha": "networks.loha",
}
"""Kind -> Kohya's name of what trains it."""
SEVERAL: Final = "Dynamic"
"""Kohya's word for a rank or alpha that is not the same in all modules."""

OF_TENSORS: Final = re.compile(
    r"format$|adapter_(?!rs_lora$)|sshs_|modelspec\.hash_sha256$"
    r"|lora_adapter_metadata$"  # diffusers' ranks and alphas, by its own names of the modules
)
"""Fields that no file takes from another."""
OF_NETWORK: Final = re.compile(r"ss_network_|adapter_rs_lora$")
"""Fields on how the adapter was set up, of which its tensors are."""
OF_RUN: Final = re.compile(r"ss_|modelspec\.")
OF_FILE: Final = ("ss_training_comment", "modelspec.usage_hint", "modelspec.date")
JOINED: Final = (
    *("modelspec.author", "modelspec.license", "modelspec.tags", "modelspec.trigger_phrase"),
    *("ss_sd_model_name", "ss_llm_adapter_name", "ss_vae_name"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that another is made of."""

    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    deltas: Mapping[str, Delta] = field(default_factory=dict[str, Delta])
    """What is taken of it, by module path; nothing of a checkpoint."""
    strength: float = 1.0
    """That the deltas are taken at."""

    @property
    def depths(self) -> dict[str, int]:
        """The depths of its model; empty if it does not say.

        Raises:
            CheckpointError: What it says is no table of numbers.
        """
        return read_depths(self.metadata, self.path)

    @property
    def title(self) -> str:
        """What it is called."""
        return self.metadata.get("modelspec.title") or self.path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a file comes from."""

    command: str
    """That made it."""
    sources: tuple[Source, ...]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else is known of it, by the name in the header."""


def read_depths(metadata: Mapping[str, str], path: Path) -> dict[str, int]:
    """Return the numbers of layers that a header states, by the path of their list.

    Raises:
        CheckpointError: It states something else.
    """
    text = metadata.get(DEPTHS_KEY, "{}")
    try:
        depths: Any = parsed_json(text)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {DEPTHS_KEY} in its header is not JSON: {text[:60]}", _EDITED
        ) from error
    if not isinstance(depths, dict) or not all(type(n) is int for n in depths.values()):
        raise CheckpointError(
            f"{path}: {DEPTHS_KEY} in its header is no table of numbers of layers: {text[:60]}",
            _EDITED,
        )
    return depths


def joined_depths(sources: Sequence[Source]) -> dict[str, int]:
    """Return what files say together of the depth of their model.

    Raises:
        CheckpointError: What one says is no table of numbers.
        ConfigError: They are of models of several depths.
    """
    depths: dict[str, int] = {}
    said_by: dict[str, Path] = {}
    for source in sources:
        for place, count in source.depths.items():
            if depths.setdefault(place, count) != count:
                raise ConfigError(
                    f"{said_by[place]} is of a model with {depths[place]} {place}, {source.path} "
                    f"of one with {count}",
                    "use adapters of one base model",
                )
            said_by.setdefault(place, source.path)
    return depths


def derived_header(origin: Origin, deltas: Mapping[str, Delta], name: str) -> dict[str, str]:
    """Return what the header of a file says that is made of others.

    What `tensor_facts` says of its tensors is not yet in it.

    Args:
        origin: What it is made of.
        deltas: What it holds, as its style expresses it.
        name: The file's, without its suffix.

    Raises:
        ConfigError: The sources are of models of several depths.
        CheckpointError: The depth that a source states is no table, or it cannot be read.
    """
    depths = joined_depths(origin.sources)
    made_of = {MADE_OF_KEY: json_text(_described(origin))}
    stated = {DEPTHS_KEY: json.dumps(depths)} if depths else {}
    if _is_same(origin.sources, deltas):
        first = origin.sources[0].metadata
        kept = {name: value for name, value in first.items() if not OF_TENSORS.match(name)}
        return {**kept, **stated, **made_of}
    facts = {
        **_common([source.metadata for source in origin.sources if source.deltas]),
        **_joined([source.metadata for source in origin.sources]),
        "ss_v2": "False",
        "ss_base_model_version": BASE_VERSION,
        **network_facts(deltas),
        "ss_output_name": name,
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.title": name,
        **origin.facts,
    }
    merged = [source.title for source in origin.sources if source.deltas]
    if len(merged) > 1:
        facts["modelspec.merged_from"] = ", ".join(merged)
    return {**facts, **stated, **made_of}


def extracted_from(base: Path, tuned: Path, depths: Mapping[str, int]) -> Origin:
    """Return the origin of an adapter that leads from one checkpoint to another.

    Args:
        base: What it is to be used on.
        tuned: What it leads to.
        depths: The numbers of layers of both.
    """
    sources = tuple(Source(path=path, metadata=stored_metadata(path)) for path in (base, tuned))
    facts = {DEPTHS_KEY: json.dumps(depths), **model_facts("sd_model", base)}
    return Origin(command="extract", sources=sources, facts=facts)


def stored_metadata(path: Path) -> dict[str, str]:
    """Return what the header of a whole safetensors file says beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def model_facts(name: str, path: Path | None) -> dict[str, str]:
    """Return a model file's name and its hashes by AUTOMATIC1111's old and new rule."""
    if path is None or not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(LEGACY_OFFSET)
        piece = file.read(LEGACY_BYTES)
    return {
        f"ss_{name}_name": path.name,
        f"ss_{name}_hash": legacy_hash(piece),
        f"ss_new_{name}_hash": file_digest(path),
    }


def baked_header(origin: Origin) -> dict[str, str]:
    """Return the header of a checkpoint with adapters in it: the base's own, the first source's."""
    base = origin.sources[0].metadata
    kept = {name: value for name, value in base.items() if not OF_TENSORS.match(name)}
    made_of = {MADE_OF_KEY: json_text(_described(origin))}
    return {**kept, **made_of, "format": "pt"}


def tensor_facts(
    deltas: Mapping[str, Delta], style: str, metadata: Mapping[str, str]
) -> dict[str, str]:
    """Return what every adapter file says of its tensors, but for their hashes.

    Args:
        deltas: As the style expresses them.
        style: Of the names.
        metadata: What the header says else. What it says of the network is said anew.
    """
    ranked = [delta for delta in deltas.values() if delta.rank is not None]
    linear = [delta for delta in deltas.values() if isinstance(delta, LinearDelta)]
    flags = {
        "adapter_dora": any(delta.has_dora for delta in linear),
        "adapter_rs_lora": any(delta.config.rs_lora for delta in linear),
    }
    network = {n: v for n, v in network_facts(deltas).items() if n in metadata}
    # T-LoRA, and what LyCORIS trains, are in a file what their kinds say.
    module, kind = metadata.get("ss_network_module", ""), network.get("ss_network_module", "")
    if module.startswith("lycoris.") or _kind_of(kind) in module:
        network.pop("ss_network_module", None)
    return {
        **{name: "true" for name, is_set in flags.items() if is_set},
        **network,
        "format": "pt",
        "adapter_kind": "+".join(sorted({kind_name(delta) for delta in deltas.values()})),
        "adapter_style": style,
        "adapter_rank": ",".join(sorted({str(delta.stated_rank) for delta in ranked})),
        "adapter_alpha": ",".join(sorted({str(delta.alpha) for delta in ranked})),
    }


def network_facts(deltas: Mapping[str, Delta]) -> dict[str, str]:
    """Return Kohya's facts of the network that deltas are of, as far as there is one."""
    linear = [delta for delta in deltas.values() if delta.group == "linear"]
    modules = {NETWORK_MODULES.get(kind_name(delta)) for delta in linear}
    found = {
        "ss_network_module": modules,
        "ss_network_dim": {delta.stated_rank for delta in linear if delta.rank is not None},
        "ss_network_alpha": {delta.alpha for delta in linear if delta.rank is not None},
    }
    if len(modules) != 1 or None in modules:
        del found["ss_network_module"]
    return {
        name: str(next(iter(values))) if len(values) == 1 else SEVERAL
        for name, values in found.items()
        if values
    }


def _kind_of(module: str) -> str:
    """Return the kind that a network module of ours trains."""
    return next((kind for kind, name in NETWORK_MODULES.items() if name == module), "")


def _is_same(sources: Sequence[Source], deltas: Mapping[str, Delta]) -> bool:
    """Tell whether what is written is the one adapter that it is made of, in other clothes."""
    if len(sources) != 1 or sources[0].strength != 1:
        return False
    first, second = (
        {place: (kind_name(d), d.stated_rank, d.alpha, d.has_dora) for place, d in each.items()}
        for each in (sources[0].deltas, deltas)
    )
    return first == second


def _common(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the facts of the run that all headers agree on."""
    first = headers[0] if headers else {}
    return {
        name: value
        for name, value in first.items()
        if OF_RUN.match(name)
        and name not in (*OF_FILE, *JOINED)
        and not OF_TENSORS.match(name)
        and not OF_NETWORK.match(name)
        and all(header.get(name) == value for header in headers)
    }


def _joined(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the fields that are lists, with what stands in any of the headers, once."""
    found = {
        name: [part.strip() for header in headers for part in header.get(name, "").split(",")]
        for name in JOINED
    }
    return {name: ", ".join(filter(None, dict.fromkeys(p))) for name, p in found.items() if any(p)}


def _described(origin: Origin) -> dict[str, Any]:
    """Return what a file was made of; of paths the last names, and what these were made of."""
    return {
        "command": origin.command,
        "files": [
            {
                "name": source.path.name,
                "sha256": file_digest(source.path),
                **({"strength": source.strength} if source.strength != 1 else {}),
                **_own_origin(source.metadata),
            }
            for source in origin.sources
        ],
    }


def _own_origin(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a source itself was made of, where it says so in a way that can be read."""
    try:
        return {MADE_OF_KEY: parsed_json(metadata[MADE_OF_KEY])}
    except (KeyError, ValueError):
        return {}


_EDITED: Final = "use the file as its trainer wrote it"
