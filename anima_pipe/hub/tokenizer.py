"""The T5 tokenizer's folder: what is missing from it is fetched, checked, then put in place."""

from __future__ import annotations

import glob
import json
import shutil
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from anima_pipe.encoders.t5_conversion import write_fast_tokenizer
from anima_pipe.encoders.t5_tokens import (
    EMBEDDED_IDS,
    END_OF_SEQUENCE,
    PADDING,
    REQUIRED_FILES,
    check_t5_tokenizer,
)
from anima_pipe.errors import ConfigError, FetchError
from anima_pipe.files import put_in_place, refusals_named
from anima_pipe.hub.causes import SourceError, Trouble
from anima_pipe.hub.clients import fetch_small
from anima_pipe.hub.locks import locked
from anima_pipe.hub.sources import Hub, Source
from anima_pipe.runtime import say, warn

PLAIN_COPY: Final = "https://huggingface.co/google-t5/t5-base"
"""A repository that has all three files, for those who fetch them by hand."""


class _Failure(NamedTuple):
    source: Source
    error: SourceError


def lacking_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that a tokenizer's folder lacks.

    Raises:
        ConfigError: The path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"T5 tokenizer path is not a directory: {folder}",
            f"name the folder that holds {', '.join(REQUIRED_FILES)}",
        )
    return tuple(name for name in REQUIRED_FILES if not (folder / name).is_file())


def complete_t5_tokenizer(
    folder: Path, sources: Sequence[Source], *, force: bool = False
) -> tuple[str, ...]:
    """Make sure that a folder is whole; without sources nothing may be fetched.

    Returns:
        The names of the files that were fetched.

    Raises:
        ConfigError: As `ensure_t5_tokenizer` and `require_t5_tokenizer`.
        FetchError: As `ensure_t5_tokenizer`, as is OutputError.
    """
    if sources:
        return ensure_t5_tokenizer(folder, sources, force=force)
    require_t5_tokenizer(folder)
    return ()


def require_t5_tokenizer(folder: Path) -> None:
    """Make sure that a folder is whole where nothing may be fetched.

    Raises:
        ConfigError: Files are missing, damaged, or disagree.
    """
    lacking = lacking_files(folder)
    if not lacking:
        return check_t5_tokenizer(folder)
    problem = (
        f"T5 tokenizer directory missing required files: [{', '.join(lacking)}] in {folder}"
        if folder.exists()
        else f"T5 tokenizer directory not found: {folder}"
    )
    raise ConfigError(
        problem, f"leave auto_download_t5_tokenizer on, or {_by_hand(folder, lacking)}"
    )


def ensure_t5_tokenizer(
    folder: Path, sources: Sequence[Source], *, force: bool = False
) -> tuple[str, ...]:
    """Fetch what a tokenizer's folder lacks; files that are there are left alone.

    New files are completed and checked in a temporary folder beside, together with the old ones,
    and get their names last. Processes that fetch at once wait for each other.

    Args:
        folder: The folder; it need not exist.
        sources: Where to look, in this order; each with its folder and revision.
        force: Fetch all files afresh, past the clients' caches, and replace those that are there.

    Returns:
        The names of the files that were fetched.

    Raises:
        ConfigError: What was there is damaged, or the path is a file.
        FetchError: No source had the files; it lists each with its cause.
        OutputError: The folder cannot be written.
    """
    if not lacking_files(folder) and not force:
        check_t5_tokenizer(folder)
        return ()
    folder = folder.resolve()
    with locked(folder):
        # Another process may have fetched the files while this one waited.
        lacking = REQUIRED_FILES if force else lacking_files(folder)
        if lacking:
            _fetch_from_any(folder, lacking, sources, afresh=force)
    check_t5_tokenizer(folder)
    return lacking


def _fetch_from_any(
    folder: Path, lacking: Sequence[str], sources: Sequence[Source], *, afresh: bool
) -> None:
    failures: list[_Failure] = []
    for source in sources:
        say(f"T5 tokenizer  fetching {', '.join(lacking)} from {source}")
        try:
            with _staging(folder) as staging:
                _complete(staging, folder, lacking, source, afresh=afresh)
                _put_in_place(staging, folder, lacking)
        except SourceError as error:
            warn(f"{source}: {error.cause}")
            failures.append(_Failure(source, error))
        else:
            return
    raise _all_failed(folder, lacking, failures)


@contextmanager
def _staging(folder: Path) -> Generator[Path]:
    """Lend a folder on the same disk; what killed processes left of theirs is removed."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    with refusals_named(folder):
        staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _complete(
    staging: Path, folder: Path, lacking: Sequence[str], source: Source, *, afresh: bool
) -> None:
    """Gather all three files in the temporary folder and check them against each other."""
    with refusals_named(folder):
        for name in REQUIRED_FILES:
            if name not in lacking:
                shutil.copyfile(folder / name, staging / name)
    # tokenizer.json comes last, for it can be made from spiece.model.
    for name in sorted(lacking):
        _obtain(name, staging, source, afresh=afresh)
    try:
        check_t5_tokenizer(staging)
    except ConfigError as error:
        problem = error.problem.replace(str(staging), "what came")
        raise SourceError(
            f"the files do not make T5's tokenizer: {problem}",
            "name a repository of the original T5, such as google-t5/t5-base"
            + ("" if len(lacking) == len(REQUIRED_FILES) else ", or replace all files by --force"),
        ) from error


def _obtain(name: str, staging: Path, source: Source, *, afresh: bool) -> None:
    """Fetch a file from the source's folder, or else its root, or else make it."""
    assert source.folder is not None
    missing: SourceError | None = None
    for folder in dict.fromkeys((source.folder, "")):
        try:
            path = f"{folder}/{name}" if folder else name
            fetch_small(source, path, staging / name, afresh=afresh)
        except SourceError as error:
            if error.trouble is not Trouble.ABSENT:
                raise
            missing = error
        else:
            return
    assert missing is not None
    # Repositories of pipelines have no config.json there, those of plain T5 no tokenizer.json.
    if name == "config.json":
        (staging / name).write_text(_CONFIG, encoding="utf-8")
    elif name == "tokenizer.json" and (staging / "spiece.model").exists():
        _make_tokenizer(staging, missing)
    else:
        raise missing


def _make_tokenizer(staging: Path, missing: SourceError) -> None:
    pieces = (staging / "spiece.model").read_bytes()
    try:
        write_fast_tokenizer(pieces, staging / "tokenizer.json")
    except ValueError as error:
        raise SourceError(
            f"{missing.cause}, and spiece.model is damaged", missing.remedy
        ) from error


_CONFIG: Final = (
    json.dumps(
        {
            "model_type": "t5",
            "vocab_size": EMBEDDED_IDS,
            "pad_token_id": PADDING,
            "eos_token_id": END_OF_SEQUENCE,
        },
        indent=2,
    )
    + "\n"
)


def _put_in_place(staging: Path, folder: Path, names: Sequence[str]) -> None:
    with refusals_named(folder):
        folder.mkdir(exist_ok=True)
        for name in names:
            put_in_place(staging / name, folder / name)


def _all_failed(folder: Path, lacking: Sequence[str], failures: Sequence[_Failure]) -> FetchError:
    hubs = tuple(failure.source.hub for failure in failures)
    causes = [(f"{each.source}: {each.error.cause}", each.error.remedy) for each in failures]
    return FetchError(_HEADINGS[hubs], f"or {_by_hand(folder, lacking)}", causes)


_HEADINGS: Final[dict[tuple[Hub, ...], str]] = {
    (Hub.HUGGING_FACE,): "Hugging Face T5 tokenizer download failed:",
    (Hub.MODELSCOPE,): "Failed to download required T5 tokenizer files from ModelScope:",
    (Hub.HUGGING_FACE, Hub.MODELSCOPE): (
        "T5 tokenizer download failed from both Hugging Face and ModelScope:"
    ),
}
"""What failed, by the hubs that were asked."""


def _by_hand(folder: Path, names: Sequence[str]) -> str:
    return f"put {', '.join(names)} from {PLAIN_COPY} into {folder} by hand"
