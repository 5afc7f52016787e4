"""Commands on adapter files: look into one, convert, merge, resize, extract."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from anima_pipe.cli.adapter_page import as_json_text, overview, table
from anima_pipe.cli.ending import ending_of
from anima_pipe.errors import ConfigError
from anima_pipe.runtime import show

if TYPE_CHECKING:
    import torch

    from anima_pipe.adapters.delta import Delta
    from anima_pipe.adapters.headers import Origin, Source
    from anima_pipe.adapters.reading import AdapterFile

SETTINGS: dict[str, Any] = {
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100}
}
STYLES = ("comfy", "kohya", "diffusers")

PRECISIONS = ("fp32", "fp16", "bf16", "float")

_input = click.option(
    "--input", "source", type=click.Path(path_type=Path), required=True, help="An adapter file."
)
_output = click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The file to write."
)
_style = click.option(
    "--save_format",
    type=click.Choice(STYLES),
    default="comfy",
    metavar="NAME",
    help="Names of the tensors: ComfyUI's, diffusers' or Kohya's. "
    "[comfy | diffusers | kohya; default comfy]",
)
_precision = click.option(
    "--save_precision",
    type=click.Choice(PRECISIONS),
    metavar="NAME",
    help="Precision of the tensors. [float | fp16 | bf16; default: one that holds the input]",
)
_rank = click.option("--rank", type=int, metavar="N", help="The largest rank of a layer.")
_energy = click.option(
    "--energy",
    type=float,
    metavar="X",
    help="Share of each layer's squared norm to keep, such as 0.99; the rank follows.",
)


_lenient = click.option(
    "--allow_unmatched",
    is_flag=True,
    help="Leave out, with a warning, what matches nothing; else it is an error.",
)


@click.command("info", help="Say what is in an adapter file.", **SETTINGS)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@_lenient
def info(source: Path, *, as_json: bool, allow_unmatched: bool) -> None:
    """Print the contents of one file."""

    def work() -> int:
        from anima_pipe.adapters.contents import describe
        from anima_pipe.runtime import warn
        from anima_pipe.weights.writing import not_finite

        file, read = _read(source, allow_unmatched)
        deltas = read.deltas
        rows = describe(deltas)
        facts = {
            "file": str(source),
            "kinds": sorted({row.kind for row in rows}),
            "dtype": ", ".join(sorted(str(d).removeprefix("torch.") for d in file.dtypes)),
            "model_depths": file.depths,
            "modules": len(deltas),
            "parameters": sum(row.parameters for row in rows),
            "metadata": dict(sorted(file.metadata.items())),
        }
        for module, delta in deltas.items():
            if spoilt := not_finite(delta.file_tensors()):
                warn(f"not every number is finite in {module}.{spoilt[0]}")
        if as_json:
            show(*as_json_text(facts, rows).split("\n"))
            return 0
        show(*overview(facts), "", *table(rows))
        return 0

    sys.exit(ending_of(work))


@click.command(
    "convert",
    help="Write an adapter, or a checkpoint, in another style or dtype, verified.",
    **SETTINGS,
)
@_input
@_output
@_style
@_precision
@click.option(
    "--drop_norms",
    is_flag=True,
    help="Leave out norms: diffusers and sd-scripts do not apply them.",
)
@_lenient
def convert(
    source: Path,
    output: Path,
    save_format: str,
    save_precision: str | None,
    *,
    drop_norms: bool,
    allow_unmatched: bool,
) -> None:
    """Convert one file."""

    def work() -> int:
        from anima_pipe.export.adapter import convert_adapter
        from anima_pipe.export.checkpoint import convert_checkpoint, is_checkpoint
        from anima_pipe.runtime import torch_dtype

        dtype = torch_dtype(save_precision) if save_precision else None
        if is_checkpoint(source):
            anew = convert_checkpoint(source, output, save_format, dtype, drop_norms=drop_norms)
            show(f"{output}: {anew.keys} tensors; {_read_back(0.0)}")
            return 0
        export = convert_adapter(
            source,
            output,
            save_format,
            dtype,
            drop_norms=drop_norms,
            allow_unmatched=allow_unmatched,
        )
        show(f"{output}: {export.keys} tensors; {_read_back(export.largest_difference)}")
        return 0

    sys.exit(ending_of(work))


@click.command("merge", help="Add several adapters up into one.", **SETTINGS)
@click.argument("sources", nargs=-1, required=True, metavar="FILE[:STRENGTH]...")
@_output
@_style
@_precision
@_rank
@_energy
@click.option(
    "--whole", is_flag=True, help="Keep differences whole where no sum of their kind is exact."
)
@_lenient
def merge(
    sources: tuple[str, ...],
    output: Path,
    save_format: str,
    save_precision: str | None,
    rank: int | None,
    energy: float | None,
    *,
    whole: bool,
    allow_unmatched: bool,
) -> None:
    """Merge files, each at its strength: without a size exactly, the ranks adding up."""

    def combine() -> _Made:
        from anima_pipe.adapters.combine import Size, merge_adapters
        from anima_pipe.adapters.headers import Origin, joined_depths
        from anima_pipe.adapters.reading import holding_all

        read = [
            _read(path, allow_unmatched, strength)
            for path, strength in map(path_and_strength, sources)
        ]
        whole_size = rank is None and energy is None
        size = None if whole_size else Size(rank=rank, energy=energy)
        origin = Origin(command="merge", sources=tuple(source for _file, source in read))
        joined_depths(origin.sources)
        adapters = [(source.deltas, source.strength) for source in origin.sources]
        dtype = holding_all(dtype for file, _source in read for dtype in file.dtypes)
        return _Made(merge_adapters(adapters, size, whole=whole), dtype, origin)

    sys.exit(ending_of(lambda: _write(combine, output, save_format, save_precision)))


@click.command("resize", help="Make an adapter smaller: a LoRA by SVD, per layer.", **SETTINGS)
@_input
@_output
@_style
@_precision
@_rank
@_energy
@_lenient
def resize(
    source: Path,
    output: Path,
    save_format: str,
    save_precision: str | None,
    rank: int | None,
    energy: float | None,
    *,
    allow_unmatched: bool,
) -> None:
    """Resize one file."""

    def shrink() -> _Made:
        from anima_pipe.adapters.combine import Size, resize_adapter
        from anima_pipe.adapters.headers import Origin
        from anima_pipe.adapters.reading import holding_all

        file, whole = _read(source, allow_unmatched)
        deltas = resize_adapter(whole.deltas, Size(rank=rank, energy=energy))
        origin = Origin(command="resize", sources=(whole,))
        return _Made(deltas, holding_all(file.dtypes), origin)

    sys.exit(ending_of(lambda: _write(shrink, output, save_format, save_precision)))


@click.command("extract", help="The adapter that leads from one checkpoint to another.", **SETTINGS)
@click.option("--base", type=click.Path(path_type=Path), required=True, help="To start from.")
@click.option("--tuned", type=click.Path(path_type=Path), required=True, help="To arrive at.")
@_output
@_style
@click.option(
    "--save_precision",
    type=click.Choice(PRECISIONS),
    default="bf16",
    metavar="NAME",
    help="Precision of the tensors. [float | fp16 | bf16; default bf16]",
)
@_rank
@_energy
@click.option(
    "--lokr_factor", type=int, metavar="N", help="Give LoKr of whole factors, with this factor."
)
def extract(
    base: Path,
    tuned: Path,
    output: Path,
    save_format: str,
    save_precision: str,
    rank: int | None,
    energy: float | None,
    lokr_factor: int | None,
) -> None:
    """Extract from two files."""

    def work() -> int:
        from anima_pipe.adapters.combine import Size
        from anima_pipe.adapters.extract import extract_adapter
        from anima_pipe.adapters.headers import extracted_from
        from anima_pipe.export.adapter import write_verified
        from anima_pipe.runtime import counted, torch_dtype, warn

        size = Size(rank=rank, energy=energy) if lokr_factor is None else Size(rank=1)
        found = extract_adapter(base, tuned, size, lokr_factor=lokr_factor)
        if found.left_out:
            warn(
                f"{counted(len(found.left_out), 'tensor')} differing, and in no adapter: "
                f"{', '.join(found.left_out[:5])}"
            )
        if not found.deltas:
            raise ConfigError(f"{tuned} differs from {base} in no layer", "give two other files")
        dtype = torch_dtype(save_precision)
        origin = extracted_from(base, tuned, found.depths)
        export = write_verified(found.deltas, output, save_format, dtype, origin)
        show(f"{output}: {len(found.deltas)} modules, {export.keys} tensors")
        return 0

    sys.exit(ending_of(work))


class _Made(NamedTuple):
    """An adapter that a command made."""

    deltas: dict[str, Delta]
    dtype: torch.dtype
    """One that holds all of the files that it was made of."""
    origin: Origin


def _write(
    make: Callable[[], _Made],
    output: Path,
    save_format: str,
    save_precision: str | None,
) -> int:
    """Write what `make` returns, in its dtype unless told otherwise."""
    from anima_pipe.export.adapter import write_verified
    from anima_pipe.runtime import torch_dtype

    deltas, own, origin = make()
    dtype = torch_dtype(save_precision) if save_precision else own
    export = write_verified(deltas, output, save_format, dtype, origin)
    ranks = sorted({delta.rank for delta in deltas.values() if delta.rank is not None})
    show(
        f"{output}: {len(deltas)} modules, ranks {', '.join(map(str, ranks))}, "
        f"{export.keys} tensors; {_read_back(export.largest_difference)}"
    )
    return 0


def _read_back(difference: float) -> str:
    """Say what came of reading a written file and comparing it."""
    return (
        f"read back, it differs by {difference:.1e} at most" if difference else "read back, equal"
    )


def _read(path: Path, allow_unmatched: bool, strength: float = 1.0) -> tuple[AdapterFile, Source]:
    """Return an adapter file, and it as what something is to be made of."""
    from anima_pipe.adapters.headers import Source
    from anima_pipe.adapters.reading import deltas_of, read_adapter_file
    from anima_pipe.export.comfy import anima_paths

    file = read_adapter_file(path, allow_unmatched=allow_unmatched)
    deltas = deltas_of(file, anima_paths())
    return file, Source(path=file.path, metadata=file.metadata, deltas=deltas, strength=strength)


def path_and_strength(argument: str) -> tuple[Path, float]:
    """Split FILE:STRENGTH; a colon may be part of the path.

    Raises:
        ConfigError: The strength is not finite.
    """
    path, found, stated = argument.rpartition(":")
    try:
        strength = float(stated) if found else 1.0
    except ValueError:
        return Path(argument), 1.0
    if not math.isfinite(strength):
        raise ConfigError(f"{argument} names a strength of {strength}", "use a number, such as 0.8")
    return Path(path if found else argument), strength
