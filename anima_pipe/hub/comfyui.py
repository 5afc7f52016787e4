"""Anima's files in an installation of ComfyUI that has them: found, and left where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from anima_pipe.errors import CheckpointError, ConfigError
from anima_pipe.files import read_small
from anima_pipe.hub.kinds import QWEN3, TRANSFORMER, VAE, describe_weights
from anima_pipe.hub.models import MODEL_FILES, ModelFile

FURTHER_FOLDERS: Final = "extra_model_paths.yaml"
"""ComfyUI's own file, beside its main.py, that names folders of models elsewhere."""

_OVERRIDES: Final = {TRANSFORMER: "transformer_file", QWEN3: "qwen3_file", VAE: "vae_file"}


def find_in_comfyui(comfyui: Path, files: Sequence[ModelFile]) -> dict[str, Path]:
    """Find the files in an existing installation, by their released names or by their content.

    Args:
        comfyui: The folder with ComfyUI's main.py, or its folder of models.
        files: What is wanted.

    Returns:
        The paths by option.

    Raises:
        ConfigError: It is no installation of ComfyUI, or a file is missing or not to be told.
    """
    installed = comfyui.parent if comfyui.name == "models" else comfyui
    models = installed / "models" if (installed / "models").is_dir() else comfyui
    places = {file: _folders(file, models, installed / FURTHER_FOLDERS) for file in files}
    if not any(folder.is_dir() for folders in places.values() for folder in folders):
        raise ConfigError(
            f"{comfyui} is no installation of ComfyUI: it has neither models/diffusion_models nor "
            f"{FURTHER_FOLDERS}",
            "name the folder that holds ComfyUI's main.py",
        )
    return {file.option: _find(file, folders, models) for file, folders in places.items()}


def _folders(file: ModelFile, models: Path, further: Path) -> list[Path]:
    """Return where ComfyUI looks for such a file, in its order."""
    folders = [models / name for name in file.folders]
    for folder, comes_first in _further_folders(further, file.folders):
        folders.insert(0 if comes_first else len(folders), folder)
    return folders


def _further_folders(path: Path, keys: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Yield the folders under some keys of ComfyUI's file, each with whether it comes first.

    The file has sections, each with an optional base_path, from which its folders are taken, and
    one text for each kind of model, with a folder on each line. Without base_path, and for
    base_path itself, relative paths start at the file's own folder. A section's is_default puts its
    folders before all others.

    Raises:
        ConfigError: The file cannot be read.
    """
    for section in _sections(path):
        base = path.parent / _expanded(_text(section, "base_path"))
        for key in keys:
            for line in _text(section, key).split("\n"):
                if line.strip():
                    yield base / _expanded(line.strip()), bool(section.get("is_default"))


def _text(section: Mapping[object, object], key: str) -> str:
    # Of a list of lists of lists, each named ten times, YAML makes ten objects, and str a bomb.
    value = section.get(key)
    return value if isinstance(value, str) else ""


def _sections(path: Path) -> list[dict[object, object]]:
    import yaml

    if not path.is_file():
        return []
    try:
        stored: object = yaml.safe_load(read_small(path).decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path} cannot be read ({reason})", "mend it: ComfyUI reads it too"
        ) from error
    sections = stored.values() if isinstance(stored, dict) else ()
    return [section for section in sections if isinstance(section, dict)]


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _find(file: ModelFile, folders: Sequence[Path], models: Path) -> Path:
    fitting = list(_fitting(file, folders))
    # Who names a file means that one.
    released = file in MODEL_FILES
    names = (PurePosixPath(file.path).name, *(file.earlier_names if released else ()))
    for name in names:
        # Of several of one name ComfyUI takes the first too.
        if chosen := next((path for path in fitting if path.name == name), None):
            return chosen.resolve()
    unlike = list({path.resolve(): path for path in fitting}) if released else []
    if len(unlike) == 1:
        return unlike[0]
    if not unlike:
        where = " or ".join(map(str, folders))
        raise ConfigError(
            f"there is no file of the {file.name} in {where}",
            "run fetch-models without --comfyui, or with --models_dir "
            f"{models} to add what is missing there",
        )
    listed = ", ".join(map(str, unlike))
    raise ConfigError(
        f"more than one file may be the {file.name}: {listed}",
        f"name it by --{_OVERRIDES[file.option]}",
    )


def _fitting(file: ModelFile, folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in _weights_under(folder):
            try:
                if describe_weights(path).option == file.option:
                    yield path
            except CheckpointError:
                # Files of other models may be of any kind, damaged ones too.
                continue


def _weights_under(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder in order of name, those behind links to folders too.

    A folder is looked into once: a link may lead back to one around it.
    """
    seen: set[tuple[int, int]] = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        status = Path(inner).stat()
        if (identity := (status.st_dev, status.st_ino)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        yield from (Path(inner, name) for name in sorted(names) if name.endswith(".safetensors"))
