"""The one next command to run, by what doctor found."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anima_pipe.kohya.resolved import Resolved
    from anima_pipe.shards.folders import Kind


NAME: Final = "anima-pipe"
PRESET: Final = Path("configs/presets/12gb/train_args.toml")


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the examination came to."""

    missing: list[str] = field(default_factory=list[str])
    """Model files that no option and no record names."""
    broken: list[str] = field(default_factory=list[str])
    """Remedies of what is there and cannot be used."""
    tokenizer_lacks: bool = False
    """Whether files of the tokenizer are missing, which would be fetched when needed."""
    caches: dict[Path | str, set[Kind]] = field(default_factory=dict[Path | str, "set[Kind]"])
    """Which kinds of samples there are, by the folder that --cache_dir takes."""


def next_step(options: Resolved, findings: Findings, config_file: Path | None) -> str:
    """Return what to run, or to do, next: the earliest step on the way that is not done yet.

    Args:
        options: Of `all`.
        findings: Of the files, the tokenizer and the caches.
        config_file: The configuration that was examined, if any.
    """
    if findings.broken:
        return findings.broken[0]
    if findings.missing:
        return f"{program()} fetch-models    (or, to see it work first: {program()} all)"
    config = {"config_file": config_file}
    if findings.tokenizer_lacks:
        return _command("fetch-tokenizer", config)
    if config_file is None:
        return _before_a_configuration()
    return _of_the_run(options, findings, config)


def program() -> str:
    """Return the program's name, or where its bare name leads nowhere, as it was called."""
    called = Path(sys.argv[0])
    return str(called) if called.name == NAME and shutil.which(NAME) is None else NAME


def _before_a_configuration() -> str:
    names = {"config_file": Path("train_args.toml"), "dataset_config": Path("dataset.toml")}
    command = _command("all", {**names, "output_dir": Path("output/NAME")})
    if all(path.is_file() for path in names.values()):
        return command
    return f"write train_args.toml and dataset.toml (README.md has both), then {command}"


def _of_the_run(options: Resolved, findings: Findings, config: Mapping[str, Path | None]) -> str:
    from anima_pipe.kohya.no_network import trains_the_model
    from anima_pipe.kohya.outputs import output_name, run_folder

    folder = run_folder(options)
    trained = folder / f"{output_name(options)}.safetensors"
    exported = folder / "comfyui" / trained.name
    if trains_the_model(options):
        if trained.is_file():
            return to_diffusion_models(trained)
    elif _is_newer(exported, trained):
        return f"cp {shlex.quote(str(exported))} ComfyUI/models/loras    (your ComfyUI's folder)"
    elif trained.is_file():
        return _command("export-comfy", {"input": trained, "output": exported})
    asked = {**config, **_unset(options)}
    beside: Path = options.value("output_dir", Path("output")) / "cache"
    own = (options.value("cache_dir"), beside)
    filled = next((cache for cache in own if len(findings.caches.get(cache, ())) > 1), None)
    if filled is None:
        return _command("all", asked)
    if filled != options.value("cache_dir"):
        asked["cache_dir"] = filled
    resume = " --resume latest" if _has_state(folder, output_name(options)) else ""
    return _command("train", asked) + resume


def after_first_look(dataset: Path | None) -> list[str]:
    """Return what to be told after a run on the embedded model: what it is good for, what is next.

    Args:
        dataset: The user's own, if it was trained on.
    """
    own = dataset or Path("FOLDER")
    full = {"config_file": PRESET, "dataset_config": own, "output_dir": Path("output/NAME")}
    return [
        "               It fits the embedded tiny model alone, not Anima and not ComfyUI.",
        f"next           {program()} fetch-models    (Anima's files)",
        f"               {_command('all', full)}    (other presets: docs/presets.md)",
    ]


def to_diffusion_models(checkpoint: Path) -> str:
    """Return the command that gives ComfyUI a trained model, whose names it reads as they are."""
    return (
        f"cp {shlex.quote(str(checkpoint))} ComfyUI/models/diffusion_models    "
        "(your ComfyUI's folder)"
    )


def _is_newer(path: Path, source: Path) -> bool:
    if not path.is_file():
        return False
    return not source.is_file() or path.stat().st_mtime >= source.stat().st_mtime


def _has_state(folder: Path, name: str) -> bool:
    from anima_pipe.errors import PipeError
    from anima_pipe.hooks.train_state import latest_state

    try:
        latest_state(folder, name)
    except PipeError:
        return False
    return True


def _unset(options: Resolved) -> dict[str, Path]:
    """Return what a run asks for beside its configuration, by the names that README.md uses."""
    asked: dict[str, Path] = {}
    if not (options.value("dataset_config") or options.value("train_data_dir")):
        asked["dataset_config"] = Path("dataset.toml")
    if not options.value("output_dir"):
        asked["output_dir"] = Path("output")
    return asked


def _command(name: str, given: Mapping[str, Path | None]) -> str:
    words = [program(), name]
    for option, path in given.items():
        words += [f"--{option}", str(path)] if path else []
    return shlex.join(words)
