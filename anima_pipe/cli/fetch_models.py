"""Fetch Anima's files, or find them in ComfyUI, and remember where they are.

Reads   what is on the disk already, circlestone-labs/Anima on Hugging Face, or else on ModelScope
Writes  transformer, text encoder and VAE in ComfyUI's layout, the T5 tokenizer, a record of the
        paths, which every command uses where nothing else names a file
Costs   5.6 GB of download and of disk; nothing where the files are there
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from anima_pipe.cli.ending import ending_of
from anima_pipe.cli.help_text import help_text
from anima_pipe.runtime import say, show

if TYPE_CHECKING:
    from anima_pipe.hub.models import ModelFile
    from anima_pipe.hub.sources import Source


@click.command(
    "fetch-models",
    help=help_text(__doc__),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--models_dir",
    metavar="DIR",
    help="Where the files go; ComfyUI's own models folder may be given. "
    "[default: in the user's cache folder]",
)
@click.option(
    "--comfyui",
    metavar="DIR",
    help="Fetch no weights: find them in this installation of ComfyUI and note where they are.",
)
@click.option(
    "--models_repo_id",
    default="circlestone-labs/Anima",
    show_default=True,
    metavar="REPO",
    help="owner/name, with or without @revision, or a URL of Hugging Face or ModelScope.",
)
@click.option("--transformer_file", metavar="PATH", help="Another file of the repository.")
@click.option("--qwen3_file", metavar="PATH", help="Another file of the repository.")
@click.option("--vae_file", metavar="PATH", help="Another file of the repository.")
@click.option(
    "--modelscope_fallback/--no-modelscope_fallback",
    default=True,
    help="Try the repository of the same name on ModelScope where Hugging Face fails. "
    "[on by default]",
)
@click.option("--force", is_flag=True, help="Fetch files again that are there already.")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def command(
    models_dir: str | None,
    comfyui: str | None,
    models_repo_id: str,
    transformer_file: str | None,
    qwen3_file: str | None,
    vae_file: str | None,
    *,
    modelscope_fallback: bool,
    force: bool,
    debug: bool,
) -> None:
    """Fetch or find the files."""

    def work() -> int:
        from anima_pipe.hub.comfyui import find_in_comfyui
        from anima_pipe.hub.home import models_folder, record_models
        from anima_pipe.hub.models import fetch_models

        models = Path(models_dir).expanduser() if models_dir else models_folder()
        files = _files(transformer_file, qwen3_file, vae_file)
        if comfyui:
            paths = find_in_comfyui(Path(comfyui).expanduser(), files)
        else:
            sources = _sources(models_repo_id, fallback=modelscope_fallback)
            paths = fetch_models(models, sources, files, force=force)
        # Noted before the tokenizer, so that its failure does not lose them.
        record_models(paths)
        paths["t5_tokenizer_dir"] = _fetch_tokenizer(models / "t5_tokenizer", force=force)
        _report(paths, record_models(paths))
        return 0

    sys.exit(ending_of(work, debug=debug))


def _files(transformer: str | None, qwen3: str | None, vae: str | None) -> list[ModelFile]:
    """Return the table of files with what the user put in place of its paths."""
    from anima_pipe.hub.kinds import QWEN3, TRANSFORMER, VAE
    from anima_pipe.hub.models import MODEL_FILES

    given = {TRANSFORMER: transformer, QWEN3: qwen3, VAE: vae}
    return [replace(file, path=given[file.option] or file.path) for file in MODEL_FILES]


def _sources(repo: str, *, fallback: bool) -> list[Source]:
    from anima_pipe.hub.sources import Hub, parse_source

    first = parse_source(repo, "model").filled(folder="")
    if first.hub is Hub.MODELSCOPE or not fallback:
        return [first]
    # The author keeps the same files under the same name on both.
    return [first, replace(first, hub=Hub.MODELSCOPE, revision="master")]


def _fetch_tokenizer(folder: Path, *, force: bool) -> Path:
    from anima_pipe.hub.sources import T5_SOURCES
    from anima_pipe.hub.tokenizer import ensure_t5_tokenizer

    ensure_t5_tokenizer(folder, T5_SOURCES, force=force)
    say(f"T5 tokenizer  {folder}: complete")
    return folder


def _report(paths: dict[str, Path], record: Path) -> None:
    """Print the lines that a train_args.toml takes."""
    for option, path in paths.items():
        show(f'{option} = "{path.resolve().as_posix()}"')
    say(f"noted in {record}")
