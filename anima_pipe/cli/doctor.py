"""Say in a screen what is there: Python, torch, devices, disk, model files, caches; and what next.

Reads   headers of the model files, the tokenizer, the caches' descriptions
Writes  nothing
Costs   ten seconds
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from anima_pipe import __version__
from anima_pipe.cli.ending import ending_of
from anima_pipe.cli.help_text import help_text
from anima_pipe.cli.next_step import Findings, next_step, program
from anima_pipe.errors import PipeError
from anima_pipe.hub.home import models_folder, recorded_models
from anima_pipe.kohya.resolve import resolve
from anima_pipe.runtime import home, show

if TYPE_CHECKING:
    from anima_pipe.kohya.resolved import Resolved
    from anima_pipe.shards.folders import Kind

NAMES: Final = {
    "pretrained_model_name_or_path": "transformer",
    "llm_adapter_path": "text adapter",
    "vae": "VAE",
    "qwen3": "text encoder",
}
OPTIONAL: Final = ("llm_adapter_path",)
"""Of these, what nobody names is not missed."""
_OTHER_TORCH: Final = "install torch for this machine (pytorch.org), or compute with --device cpu"
LISTED_CACHES: Final = 6
"""So that all of it fits on a screen."""
KINDS: Final[tuple[Kind, ...]] = ("latents", "masks", "text")
BYTES_PER_WEIGHT: Final = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@click.command(
    "doctor",
    help=help_text(__doc__),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--config_file", metavar="PATH", help="Examine the files that this one names.")
@click.option("--cache_dir", metavar="DIR", help="Folder of caches. [default: that of the file]")
@click.option(
    "--device", default="auto", show_default=True, help="Where the numeric self-check runs."
)
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def command(config_file: str | None, cache_dir: str | None, device: str, *, debug: bool) -> None:
    """Examine everything; the exit code is 1 where something that is there cannot be used."""

    def work() -> int:
        given = {"config_file": config_file, "cache_dir": cache_dir, "device": device}
        file = Path(config_file).expanduser() if config_file else None
        options = resolve("all", given, file)
        findings = Findings()
        for title, lines in (
            ("anima-pipe", iter([f"{__version__}, Python {_python()}"])),
            ("torch", _torch()),
            ("disk", _disk()),
            ("models", _models(options, findings)),
            ("tokenizer", _tokenizer(options, findings)),
            ("caches", _caches(options, findings)),
            ("self-check", _self_check(device, findings)),
            ("next", _next(options, findings, file)),
        ):
            for number, line in enumerate(lines):
                show(f"{title if number == 0 else '':<12}{line}")
        return 1 if findings.broken else 0

    sys.exit(ending_of(work, debug=debug))


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _torch() -> Iterator[str]:
    import torch

    from anima_pipe.runtime import choose_device

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "processors"
    built = f"ROCm {torch.version.hip}" if torch.version.hip else built
    yield f"{torch.__version__}, built for {built}; training would run on {choose_device()}"
    yield f"cpu: {os.cpu_count()} cores, {_memory()}"
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield f"cuda:{number}: {name}, {_readable(free)} of {_readable(total)} free, {half}"
    if torch.backends.mps.is_available():
        yield "mps: Apple's GPU, which shares the memory above"


def _memory() -> str:
    # Not every system tells; Windows knows none of these names.
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
    except (AttributeError, ValueError, OSError):
        return "memory unknown"
    try:
        return f"{_readable(os.sysconf('SC_AVPHYS_PAGES') * page)} of {_readable(total)} free"
    except (ValueError, OSError):
        return f"{_readable(total)} of memory"


def _disk() -> Iterator[str]:
    for folder in dict.fromkeys((Path.cwd(), home())):
        existing = next(above for above in (folder, *folder.parents) if above.is_dir())
        yield f"{_readable(shutil.disk_usage(existing).free)} free at {folder}"


def _models(options: Resolved, findings: Findings) -> Iterator[str]:
    recorded = recorded_models()
    for option, name in NAMES.items():
        path: Path | None = options.value(option) or recorded.get(option)
        if path is None and option in OPTIONAL:
            continue
        if path is None:
            findings.missing.append(name)
            yield f"{name:<13} not named (--{option}), nor noted"
        else:
            yield f"{name:<13} {path}"
            try:
                line = _weights(option, path, options, findings)
            except PipeError as error:
                findings.broken.append(_mended(option, path, options) or error.remedy)
                line = f"cannot be used: {error.problem}"
            yield f"{'':<13} {line}"


def _mended(option: str, path: Path, options: Resolved) -> str | None:
    """Return what to do about a file that is missing or damaged; None: what its error says."""
    if path.is_relative_to(models_folder()):
        return f"rm {shlex.quote(str(path))} && {program()} fetch-models"
    if path.exists() or option in OPTIONAL:
        return None
    if noted := recorded_models().get(option):
        return f"take {option} out of {options.given(option)}: fetch-models noted {noted}"
    return f"take {option} out of {options.given(option)}, and run {program()} fetch-models"


def _weights(option: str, path: Path, options: Resolved, findings: Findings) -> str:
    from anima_pipe.encoders.qwen_files import find_qwen_files
    from anima_pipe.hub.kinds import (
        QWEN3,
        TRANSFORMER,
        WITHOUT_TEXT_ADAPTER,
        describe_weights,
    )

    files = find_qwen_files(path).weights if option == QWEN3 else (path,)
    told = describe_weights(files[0])
    size = sum(file.stat().st_size for file in files)
    blocks = f", {told.blocks} blocks" if told.blocks else ""
    line = f"{_readable(size)}, {told.kind}, {told.dtype}{blocks}"
    # Small models of the same kind are taken too, whose text encoder has another width.
    serves = told.option == option or (option == QWEN3 and "Qwen3" in told.kind)
    if options.value("llm_adapter_path") and option == TRANSFORMER:
        serves |= told.kind == WITHOUT_TEXT_ADAPTER
    if not serves:
        findings.broken.append(f"give the file of the {NAMES[option]} as --{option}")
        return f"is not the {NAMES[option]}: {line}"
    if option == TRANSFORMER:
        in_half = size * 2 // BYTES_PER_WEIGHT.get(told.dtype, 2)
        line += f"; takes {_readable(in_half)} in bf16, and training what it needs on top"
    return line


def _tokenizer(options: Resolved, findings: Findings) -> Iterator[str]:
    from anima_pipe.hub.tokenizer import lacking_files, require_t5_tokenizer

    default = models_folder() / "t5_tokenizer"
    folder: Path = options.value("t5_tokenizer_dir") or recorded_models().get(
        "t5_tokenizer_dir", default
    )
    try:
        lacking = lacking_files(folder)
        findings.tokenizer_lacks = bool(lacking) and options.value("auto_download_t5_tokenizer")
        if not findings.tokenizer_lacks:
            require_t5_tokenizer(folder)
    except PipeError as error:
        findings.broken.append(error.remedy)
        yield f"cannot be used: {error.problem}"
        return
    yield str(folder)
    yield (
        f"lacks {', '.join(lacking)}; fetched when needed" if lacking else "whole, its files agree"
    )


def _caches(options: Resolved, findings: Findings) -> Iterator[str]:
    folders = list(dict.fromkeys(_cache_folders(options)))
    told = [line for folder in folders for line in _caches_in(folder, options, findings)]
    yield from told[:LISTED_CACHES] or [f"none in {' or '.join(map(str, folders))}"]
    if len(told) > LISTED_CACHES:
        yield f"and {len(told) - LISTED_CACHES} more; --cache_dir names one folder"


def _cache_folders(options: Resolved) -> Iterator[Path | str]:
    """Yield the run's own folder, or else where commands put caches if they are told nothing."""
    yield options.value("cache_dir")
    if options.given("cache_dir") is not None:
        return
    if options.value("output_dir"):
        yield options.value("output_dir") / "cache"
    yield from sorted(path for path in Path("output").glob("*/cache") if path.is_dir())


def _caches_in(place: Path | str, options: Resolved, findings: Findings) -> Iterator[str]:
    from anima_pipe.shards.places import open_place, refresh

    try:
        folder = open_place(place, options.value("cache_mirror_dir"))
        refresh(folder)
    except PipeError as error:
        findings.broken.append(error.remedy)
        yield f"cannot be used: {error.problem}"
        return
    for kind in KINDS:
        for cache in sorted(folder.glob(f"{kind}-*")):
            yield _cache(cache, place, kind, findings)


def _cache(folder: Path, place: Path | str, kind: Kind, findings: Findings) -> str:
    from anima_pipe.shards.contents import read_shards
    from anima_pipe.shards.folders import read_identity
    from anima_pipe.shards.places import shown_path

    try:
        identity = read_identity(folder)
        shards, problems = read_shards(folder, kind)
    except PipeError as error:
        findings.broken.append(error.remedy)
        return f"cannot be used: {error.problem}"
    samples = len({key for shard in shards for key in shard.keys})
    if samples:
        findings.caches.setdefault(place, set()).add(kind)
    damage = f", {_counted(len(problems), 'problem')}" if problems else ""
    made_by = Path(identity.encoder_name).name
    held = f"{_counted(samples, 'sample')} in {_counted(len(shards), 'shard')}"
    return f"{shown_path(folder.parent, folder)}: {held}, by {made_by}{damage}"


def _self_check(device: str, findings: Findings) -> Iterator[str]:
    from anima_pipe.demo.self_check import check_parts
    from anima_pipe.runtime import choose_device

    chosen = choose_device(device)
    try:
        checks = check_parts(chosen)
    # Whatever torch does on this device is the finding.
    except Exception as error:  # noqa: BLE001
        findings.broken.append(_OTHER_TORCH)
        yield f"fails on {chosen}: {type(error).__name__}: {error}"
        return
    told = [f"{c.part} {'passes' if c.passes else f'is off by {c.difference:.1g}'}" for c in checks]
    yield f"{', '.join(told)} (on {chosen})"
    if not all(check.passes for check in checks):
        findings.broken.append(_OTHER_TORCH)


def _next(options: Resolved, findings: Findings, config_file: Path | None) -> Iterator[str]:
    # Called when all others have spoken.
    yield next_step(options, findings, config_file)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
