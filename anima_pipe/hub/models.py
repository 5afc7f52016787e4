"""Anima's released files, fetched into ComfyUI's layout."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from anima_pipe.errors import FetchError, OutputError
from anima_pipe.files import put_in_place, refusals_named
from anima_pipe.hub.causes import SourceError
from anima_pipe.hub.clients import fetch_large, look_up
from anima_pipe.hub.kinds import QWEN3, TRANSFORMER, VAE
from anima_pipe.hub.locks import locked
from anima_pipe.hub.remote_file import RemoteFile
from anima_pipe.hub.sources import Source
from anima_pipe.runtime import say, warn

RELEASE: Final = "circlestone-labs/Anima"
"""The author's repository, under this name on Hugging Face and on ModelScope."""

LICENCE: Final = (
    "Anima's weights: CircleStone Labs Non-Commercial License, as a derivative of Cosmos-Predict2 "
    "also NVIDIA Open Model License; Qwen3 and the VAE: Apache-2.0."
)
TERMS: Final = (
    f"  The terms are at https://huggingface.co/{RELEASE}; fetching the files means to accept them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One released file, and where it goes."""

    option: str
    """The option that takes it."""
    name: str
    """What it is, for messages."""
    path: str
    """In the repository."""
    folders: tuple[str, ...]
    """Of ComfyUI's `models` that hold such files; it is fetched into the first."""
    earlier_names: tuple[str, ...] = ()
    """Of released files that serve as well, newest first."""

    def place(self, models: Path) -> Path:
        """Return where the file goes in a folder of models."""
        return models / self.folders[0] / PurePosixPath(self.path).name


MODEL_FILES: Final = (
    ModelFile(
        option=TRANSFORMER,
        name="transformer",
        path="split_files/diffusion_models/anima-base-v1.0.safetensors",
        folders=("diffusion_models", "unet"),
        earlier_names=("anima-preview3-base.safetensors", "anima-preview.safetensors"),
    ),
    ModelFile(
        option=QWEN3,
        name="text encoder",
        path="split_files/text_encoders/qwen_3_06b_base.safetensors",
        folders=("text_encoders", "clip"),
    ),
    ModelFile(
        option=VAE,
        name="VAE",
        path="split_files/vae/qwen_image_vae.safetensors",
        folders=("vae",),
    ),
)


def fetch_models(
    models: Path, sources: Sequence[Source], files: Sequence[ModelFile], *, force: bool = False
) -> dict[str, Path]:
    """Fetch the released files that a folder lacks.

    A file is fetched and checked in a temporary folder beside its place, which the client resumes
    from after an interruption as far as it can, and renamed last.

    Args:
        models: A folder in ComfyUI's layout.
        sources: Repositories, the next one for what the one before did not give.
        files: What is wanted.
        force: Replace files that are there.

    Returns:
        The paths by option.

    Raises:
        FetchError: A file could not be had; it lists each source with its cause.
        OutputError: The disk lacks room, or the folder cannot be written.
    """
    models = models.resolve()
    missing = [file for file in files if force or not file.place(models).is_file()]
    for file in files:
        if file not in missing:
            say(f"{file.name:13} {file.place(models)}: there already")
    if missing:
        say(LICENCE, TERMS)
        found = {file: _look_up_anywhere(file, sources, models) for file in missing}
        _announce(found, models)
        for file, remote in found.items():
            _fetch(file, remote, sources, models, force=force)
    return {file.option: file.place(models) for file in files}


def _look_up_anywhere(file: ModelFile, sources: Sequence[Source], models: Path) -> RemoteFile:
    failures: list[tuple[str, str]] = []
    for source in sources:
        try:
            return look_up(source, file.path)
        except SourceError as error:
            failures.append(_failure(source, error))
    raise _cannot_be_had(file, failures, sources, models)


def _announce(found: Mapping[ModelFile, RemoteFile], models: Path) -> None:
    """Say what will be fetched, and refuse where the disk has no room for it."""
    for file, remote in found.items():
        size = _gigabytes(remote.size)
        say(f"{file.name:13} {size}  {remote.source}: {remote.path}")
        say(f"{'':25}to {file.place(models)}")
    total = sum(remote.size for remote in found.values())
    there = sum(_bytes_there(file.place(models)) for file in found)
    free = shutil.disk_usage(_existing(models)).free
    begun = f", of which {_gigabytes(there)} are there" if there else ""
    say(f"{'altogether':13} {_gigabytes(total)}{begun}, and {_gigabytes(free)} are free")
    if total - there > free:
        raise OutputError(
            f"{models} has room for {_gigabytes(free)}, and {_gigabytes(total - there)} are needed",
            "make room, or name a folder on another disk by --models_dir",
        )


def _bytes_there(place: Path) -> int:
    """Return how much an interrupted run left of a file."""
    return sum(path.stat().st_size for path in _working_folder(place).rglob("*") if path.is_file())


def _fetch(
    file: ModelFile, found: RemoteFile, sources: Sequence[Source], models: Path, *, force: bool
) -> None:
    """Fetch one file, from where it was found or else from the sources after that."""
    place = file.place(models)
    failures: list[tuple[str, str]] = []
    with locked(place):
        # Another process may have fetched it while this one waited.
        if place.is_file() and not force:
            return
        for source in sources[sources.index(found.source) :]:
            try:
                remote = found if source is found.source else look_up(source, file.path)
                _fetch_in_place(remote, place)
            except SourceError as error:
                failures.append(_failure(source, error))
            else:
                say(f"{file.name:13} {place}: fetched, its checksum fits")
                return
    raise _cannot_be_had(file, failures, sources, models)


def _fetch_in_place(remote: RemoteFile, place: Path) -> None:
    working = _working_folder(place)
    fetched = fetch_large(remote, working)
    with refusals_named(place):
        put_in_place(fetched, place)
    shutil.rmtree(working, ignore_errors=True)


def _working_folder(place: Path) -> Path:
    """Return where a file is while it is fetched: on the same disk, and hidden."""
    return place.with_name(f".{place.name}.fetching")


def _failure(source: Source, error: SourceError) -> tuple[str, str]:
    warn(f"{source}: {error.cause}")
    return f"{source}: {error.cause}", error.remedy


def _cannot_be_had(
    file: ModelFile, failures: Sequence[tuple[str, str]], sources: Sequence[Source], models: Path
) -> FetchError:
    return FetchError(
        f"the {file.name} cannot be had:",
        f"or put {file.path} from {sources[0].page} to {file.place(models)} by hand",
        failures,
    )


def _existing(path: Path) -> Path:
    """Return the nearest folder above that is there already."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:6.2f} GB"
