"""Writing a checkpoint anew: in another dtype, or in the names and folders of diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from anima_pipe.adapters.extract import read_tensor
from anima_pipe.adapters.foreign import DIFFUSERS_TEXT_ADAPTER, diffusers_path
from anima_pipe.adapters.headers import Origin, Source, baked_header, stored_metadata
from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.files import published, require_readable_name
from anima_pipe.folders import published_folder
from anima_pipe.model import TransformerConfig, read_transformer_config
from anima_pipe.model.config import PATCH
from anima_pipe.model.load import transformer_tensors
from anima_pipe.records import LATENT_CHANNELS
from anima_pipe.weights.files import StoredTensor, read_header
from anima_pipe.weights.kinds import TRANSFORMER, find_kind
from anima_pipe.weights.names import RELEASED_PREFIX
from anima_pipe.weights.writing import (
    DTYPES,
    STORED_NAMES,
    append_copy,
    append_tensor,
    size_in,
    write_header,
)

WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
"""What diffusers calls the file of a part's weights, in the part's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A checkpoint that was written, each of whose numbers is the source's, rounded once."""

    path: Path
    keys: int
    """Tensors in all."""


class _Source(NamedTuple):
    """What is written anew, and how."""

    path: Path
    dtype: torch.dtype | None
    header: dict[str, str]
    """Of what is written."""


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a transformer's; one that is none, or not whole, is not."""
    try:
        kind = find_kind(read_header(path)) if path.is_file() else None
    except CheckpointError:
        return False
    return kind is not None and kind.option == TRANSFORMER


class _Part(NamedTuple):
    """A part of a pipeline of diffusers."""

    folder: str
    tensors: Mapping[str, StoredTensor]
    """By diffusers' names."""
    settings: Mapping[str, Any]
    """What its class is made with."""


@torch.no_grad()
def convert_checkpoint(
    source: Path,
    target: Path,
    style: str = "comfy",
    dtype: torch.dtype | None = None,
    *,
    drop_norms: bool = False,
    command: str = "convert",
) -> Converted:
    """Write the transformer of a checkpoint, its text adapter included, anew.

    What was written is read back before it gets its name. One tensor is in memory at a time.

    Args:
        source: The checkpoint; what it holds of other parts is left out.
        target: The file to write; for diffusers a folder, which must not be there yet, of the
            folders `transformer` and `text_conditioner`.
        style: "comfy" or "kohya": the names of the release; or "diffusers".
        dtype: Of the tensors; None: each in its own.
        drop_norms: Wanted of adapters; a model is none without them.
        command: What the header is to say made it.

    Raises:
        CheckpointError: The source is no whole Anima transformer, or the target is not as it.
        ConfigError: The target is the source itself, or not what the style writes; or norms are to
            be left out.
        OutputError: The target cannot be written.
    """
    if drop_norms:
        raise ConfigError(
            f"drop_norms is set, but {source} is a checkpoint: a model is none without its norms",
            "remove drop_norms",
        )
    config, tensors = read_transformer_config(source), transformer_tensors(source)
    own = Source(path=source, metadata=stored_metadata(source))
    anew = _Source(source, dtype, baked_header(Origin(command=command, sources=(own,))))
    if style == "diffusers":
        _write_folder(target, anew, _parts_for_diffusers(tensors, config))
    else:
        _refuse_unfit_file(source, target)
        released = {f"{RELEASED_PREFIX}{name}": tensor for name, tensor in tensors.items()}
        with published(target) as unfinished:
            _write(unfinished, target, anew, released)
    return Converted(path=target, keys=len(tensors))


def _write_folder(target: Path, source: _Source, parts: Sequence[_Part]) -> None:
    _refuse_unfit_folder(target)
    with published_folder(target) as folder:
        for part in parts:
            place = folder / part.folder
            place.mkdir()
            text = json.dumps(part.settings, indent=2)
            (place / "config.json").write_text(text, encoding="utf-8")
            _write(place / WEIGHTS, target / part.folder / WEIGHTS, source, part.tensors)


def _refuse_unfit_file(source: Path, target: Path) -> None:
    require_readable_name(target, "give another --output")
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the checkpoint itself", "give another --output")


def _refuse_unfit_folder(target: Path) -> None:
    """Check that a folder can be made that replaces nothing."""
    if target.suffix == ".safetensors":
        raise ConfigError(
            f"{target} is to be a file, but diffusers has a checkpoint in a folder",
            "give --output the name of a folder",
        )
    require_readable_name(target, "give another --output")
    if target.exists():
        raise ConfigError(f"{target} is there already", "give --output another name, or remove it")


def _parts_for_diffusers(
    tensors: Mapping[str, StoredTensor], config: TransformerConfig
) -> list[_Part]:
    named = {_diffusers_name(name): tensor for name, tensor in tensors.items()}
    text, own = (
        {name: t for name, t in named.items() if name.startswith(DIFFUSERS_TEXT_ADAPTER) == is_text}
        for is_text in (True, False)
    )
    conditioner = {name.removeprefix(DIFFUSERS_TEXT_ADAPTER): t for name, t in text.items()}
    return [
        _Part("transformer", own, _transformer_settings(config)),
        _Part("text_conditioner", conditioner, _conditioner_settings(config)),
    ]


def _diffusers_name(name: str) -> str:
    path, _, parameter = name.rpartition(".")
    return f"{diffusers_path(path)}.{parameter}"


def _transformer_settings(config: TransformerConfig) -> dict[str, Any]:
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_width,
        "num_layers": config.blocks,
        "mlp_ratio": config.mlp_width / config.width,
        "text_embed_dim": config.context_width,
        "adaln_lora_dim": config.adaln_width,
        "patch_size": [1, PATCH, PATCH],
        "rope_scale": [1.0, 4.0, 4.0],
        "concat_padding_mask": config.padding_mask,
        "extra_pos_embed_type": None,
    }


def _conditioner_settings(config: TransformerConfig) -> dict[str, Any]:
    sizes = config.llm_adapter
    return {
        "_class_name": "AnimaTextConditioner",
        "source_dim": sizes.source_width,
        "target_dim": sizes.output_width,
        "model_dim": sizes.width,
        "num_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "mlp_ratio": sizes.mlp_width / sizes.width,
        "target_vocab_size": sizes.vocabulary,
    }


def _write(path: Path, called: Path, source: _Source, tensors: Mapping[str, StoredTensor]) -> None:
    """Write one file, and read it back; `called` is what it will be."""
    kinds = {n: STORED_NAMES[source.dtype] if source.dtype else t.dtype for n, t in tensors.items()}
    layout = {n: (kinds[n], t.shape, size_in(kinds[n], t)) for n, t in tensors.items()}
    with path.open("wb") as out, source.path.open("rb") as stored:
        write_header(out, layout, source.header)
        for name, tensor in tensors.items():
            if kinds[name] == tensor.dtype:
                append_copy(out, name, stored, tensor, called)
            else:
                append_tensor(out, name, _in_dtype(source, tensor, kinds[name]), called)
    written = read_header(path)
    for name, tensor in tensors.items():
        expected = _in_dtype(source, tensor, kinds[name]).float()
        if not torch.equal(read_tensor(path, written[name]), expected):
            raise CheckpointError(
                f"{called}: {name} was written with other numbers than it has in {source.path}",
                "check the disk, and report it if it happens again",
            )


def _in_dtype(source: _Source, tensor: StoredTensor, kind: str) -> torch.Tensor:
    return read_tensor(source.path, tensor).to(DTYPES[kind])
