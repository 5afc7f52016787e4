"""Say in a screen what is there: Python, torch, devices, disk, model files, caches; and what next.

Reads   headers of the model files, the tokenizer, the caches' descriptions
Writes  nothing
Costs   ten seconds
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from anima_pipe import __version__
from anima_pipe.cli.ending import ending_of
from anima_pipe.errors import PipeError
from anima_pipe.hub.home import home, models_folder, recorded_models
from anima_pipe.kohya.resolve import resolve

if TYPE_CHECKING:
    from anima_pipe.kohya.resolved import Resolved
    from anima_pipe.shards.folders import Kind

NAMES: Final = {
    "pretrained_model_name_or_path": "transformer",
    "vae": "VAE",
    "qwen3": "text encoder",
}
_OTHER_TORCH: Final = "install torch for this machine (pytorch.org), or compute with --device cpu"
KINDS: Final[tuple[Kind, ...]] = ("latents", "masks", "text")
BYTES_PER_WEIGHT: Final = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(slots=True, kw_only=True)
class Findings:
    """What the examination came to, for the last line."""

    missing: list[str] = field(default_factory=list[str])
    """Model files that no option and no record names."""
    broken: list[str] = field(default_factory=list[str])
    """Remedies of what is there and cannot be used."""


@click.command(
    "doctor",
    help=(__doc__ or "").replace("\n\n", "\n\n\b\n"),
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
            ("next", _next(findings, config_file)),
        ):
            for number, line in enumerate(lines):
                click.echo(f"{title if number == 0 else '':<12}{line}")
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
        if path is None:
            findings.missing.append(name)
            yield f"{name:<13} none is named (--{option}), and fetch-models noted none"
        else:
            yield f"{name:<13} {path}"
            yield f"{'':<13} {_weights(option, path, findings)}"


def _weights(option: str, path: Path, findings: Findings) -> str:
    from anima_pipe.encoders.qwen_files import find_qwen_files
    from anima_pipe.hub.kinds import QWEN3, TRANSFORMER, describe_weights

    try:
        files = find_qwen_files(path).weights if option == QWEN3 else (path,)
        told = describe_weights(files[0])
    except PipeError as error:
        findings.broken.append(error.remedy)
        return f"cannot be used: {error.problem}"
    size = sum(file.stat().st_size for file in files)
    blocks = f", {told.blocks} blocks" if told.blocks else ""
    line = f"{_readable(size)}, {told.kind}, {told.dtype}{blocks}"
    # Small models of the same kind are taken too, whose text encoder has another width.
    if told.option != option and not (option == QWEN3 and "Qwen3" in told.kind):
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
        if (lacking := lacking_files(folder)) and options.value("auto_download_t5_tokenizer"):
            yield f"{folder}: lacks {', '.join(lacking)}; fetched when needed"
            return
        require_t5_tokenizer(folder)
    except PipeError as error:
        findings.broken.append(error.remedy)
        yield f"cannot be used: {error.problem}"
    else:
        yield f"{folder}: whole, its files agree"


def _caches(options: Resolved, findings: Findings) -> Iterator[str]:
    folders: list[Path] = [options.value("cache_dir")]
    # Where `all` puts them if it is told nothing else.
    if options.given("cache_dir") is None and options.value("output_dir"):
        folders.append(options.value("output_dir") / "cache")
    told = [
        _cache(cache, kind, findings)
        for folder in folders
        for kind in KINDS
        for cache in sorted(folder.glob(f"{kind}-*"))
    ]
    yield from told or [f"none in {' or '.join(map(str, folders))}"]


def _cache(folder: Path, kind: Kind, findings: Findings) -> str:
    from anima_pipe.shards.contents import read_shards
    from anima_pipe.shards.folders import read_identity

    try:
        identity = read_identity(folder)
        shards, problems = read_shards(folder, kind)
    except PipeError as error:
        findings.broken.append(error.remedy)
        return f"cannot be used: {error.problem}"
    samples = len({key for shard in shards for key in shard.keys})
    damage = f", {len(problems)} problems" if problems else ""
    made_by = Path(identity.encoder_name).name
    return f"{folder}: {samples} samples in {len(shards)} shards, by {made_by}{damage}"


def _self_check(device: str, findings: Findings) -> Iterator[str]:
    from anima_pipe.runtime import choose_device
    from anima_pipe.self_check import check_parts

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


def _next(findings: Findings, config_file: str | None) -> Iterator[str]:
    """Yield the one thing to do."""
    if findings.broken:
        yield findings.broken[0]
    elif findings.missing:
        yield "anima-pipe fetch-models    (or, to see it work first: anima-pipe all)"
    else:
        config = config_file or "train_args.toml"
        rest = "--dataset_config dataset.toml --output_dir output"
        yield f"anima-pipe all --config_file {config} {rest}"


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
