"""From resolved options to model files: what nobody names is what was noted when it was fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.runtime import launched_rank, say

if TYPE_CHECKING:
    from anima_pipe.hub.sources import Source
    from anima_pipe.runs.settings.fetching import FetchTokenizerSettings


def models_needed(options: Resolved) -> tuple[str, ...]:
    """Return the options that name the model files of a training, bar the tokenizer.

    Without auto_cache a run takes its latents and texts as they are, from whatever encoders: it
    needs none, except for the previews' pictures.
    """
    fills_gaps = options.command != TRAIN or options.value("auto_cache")
    encoders = ("vae", "qwen3") if fills_gaps else ()
    previews = ("vae",) if options.value("sample_prompts") else ()
    return tuple(dict.fromkeys(("pretrained_model_name_or_path", *encoders, *previews)))


def with_recorded_models(options: Resolved, *names: str) -> Resolved:
    """Take what fetch-models noted for those of these options that nobody has set.

    Args:
        options: Of a command that honours all of them.
        names: Of options that the command will use: what it takes so is said.
    """
    return completed(options, _recorded_for(options, *names))


def _recorded_for(options: Resolved, *names: str) -> dict[str, Path]:
    """Return, and say, what fetch-models noted for those of these options that have no value."""
    from anima_pipe.hub.home import recorded_models

    unset = [name for name in names if options.value(name) is None]
    recorded = recorded_models() if unset else {}
    taken = {name: recorded[name] for name in unset if name in recorded}
    # Processes that were launched together would all say it.
    if launched_rank().number == 0:
        for name, path in taken.items():
            say(f"{name} is not set: taking {path}, which was noted earlier")
    return taken


def tokenizer_settings(options: Resolved, *, force: bool = False) -> FetchTokenizerSettings:
    """Return where the T5 tokenizer is to be, and where its files come from.

    Where no folder is given, it is the one that was noted when it was fetched, or else the default.

    Args:
        options: Of the command.
        force: Whether files that are there are to be fetched too.

    Raises:
        ConfigError: No folder is known and none may be made; or a source is no repository.
    """
    from anima_pipe.hub.home import tokenizer_folder
    from anima_pipe.runs.settings.fetching import FetchTokenizerSettings

    downloads = options.value("auto_download_t5_tokenizer")
    options = with_recorded_models(options, "t5_tokenizer_dir")
    folder: Path | None = options.value("t5_tokenizer_dir")
    default = tokenizer_folder()
    if folder is None and (downloads or default.is_dir()):
        folder = default
        if launched_rank().number == 0:
            say(f"t5_tokenizer_dir is not set: taking {default}")
    if folder is None:
        options.require("t5_tokenizer_dir")
    assert folder is not None
    sources = tuple(tokenizer_sources(options)) if downloads else ()
    return FetchTokenizerSettings(folder=folder, sources=sources, force=force)


def known_tokenizer(options: Resolved) -> Path | None:
    """Return the T5 tokenizer's folder if one is named, recorded or in its usual place."""
    from anima_pipe.hub.home import tokenizer_folder

    options = with_recorded_models(options, "t5_tokenizer_dir")
    default = tokenizer_folder()
    return options.value("t5_tokenizer_dir") or (default if default.is_dir() else None)


def completed(options: Resolved, paths: Mapping[str, Path]) -> Resolved:
    """Return the options with these values, whatever the user set."""
    return replace(
        options,
        written={name: item for name, item in options.written.items() if name not in paths},
        defaults={**options.defaults, **paths},
    )


def tokenizer_sources(options: Resolved) -> list[Source]:
    """Return where the tokenizer is looked for, in order.

    Raises:
        ConfigError: A source is neither a repository nor a link to one.
    """
    from anima_pipe.hub.sources import Hub, parse_source

    modelscope_revision = options.value("t5_tokenizer_modelscope_revision")
    first = parse_source(options.value("t5_tokenizer_repo_id") or "")
    on_modelscope = first.hub is Hub.MODELSCOPE
    first = first.filled(
        folder=options.value("t5_tokenizer_subfolder") or "",
        revision=modelscope_revision if on_modelscope else None,
    )
    # Who names a source on ModelScope has chosen; the fallback is for Hugging Face.
    if on_modelscope or not options.value("t5_tokenizer_modelscope_fallback"):
        return [first]
    second = parse_source(options.value("t5_tokenizer_modelscope_repo_id") or "")
    second = replace(second, hub=Hub.MODELSCOPE).filled(
        folder=options.value("t5_tokenizer_modelscope_subfolder") or "",
        revision=modelscope_revision,
    )
    return [first, second]
