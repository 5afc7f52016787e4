"""Where model files are kept unless the user says otherwise, and where they were found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from anima_pipe.errors import ConfigError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.runtime import home

MODEL_OPTIONS = ("pretrained_model_name_or_path", "vae", "qwen3", "t5_tokenizer_dir")
"""The options that name model files, which are also the keys of the record."""

_REMADE = "remove it: `anima-pipe fetch-models` and `fetch-tokenizer` write it anew"


def models_folder() -> Path:
    """Return where model files are fetched to, in ComfyUI's layout."""
    return home() / "models"


def tokenizer_folder() -> Path:
    """Return where the T5 tokenizer is fetched to."""
    return models_folder() / "t5_tokenizer"


def recorded_models() -> dict[str, Path]:
    """Return the model files that fetch-models fetched or found, by the options that take them.

    What has gone from the disk since is left out.

    Raises:
        ConfigError: The record is damaged.
    """
    path = record_path()
    try:
        stored: object = parsed_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", _REMADE) from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path} is not a record of model files", _REMADE)
    known = cast("dict[str, object]", stored)
    paths = {name: Path(str(known[name])) for name in MODEL_OPTIONS if name in known}
    return {name: path for name, path in paths.items() if path.exists()}


def record_models(found: Mapping[str, Path]) -> Path:
    """Note where model files are, beside what was noted of others; return the record's path.

    Raises:
        OutputError: The record cannot be written.
    """
    paths = {**recorded_models(), **found}
    text = json.dumps({name: str(path.resolve()) for name, path in paths.items()}, indent=2)
    write_atomically(record_path(), text.encode() + b"\n")
    return record_path()


def record_path() -> Path:
    """Return the file that says where model files are."""
    return home() / "models.json"
