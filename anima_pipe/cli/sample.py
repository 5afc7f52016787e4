"""Draw pictures with the base model and any adapters at any strengths, and sheets that compare.

Reads   the model's files and adapters of any style
Writes  PNGs with what they were drawn with in their metadata, and with --xy a sheet per prompt
Costs   the text encoder's memory, then the transformer's and the VAE's
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anima_pipe import demo
from anima_pipe.cli.adapter_files import path_and_strength
from anima_pipe.cli.ending import ending_of
from anima_pipe.cli.help_text import help_text
from anima_pipe.cli.sample_axes import LETTERS, Shot, by_files, grid, parse_axis
from anima_pipe.errors import ConfigError
from anima_pipe.hub.home import MODEL_OPTIONS
from anima_pipe.kohya.model_files import with_recorded_models
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.kohya.sample_prompts import BARE, parse_prompt, read_sample_prompts, with_settings
from anima_pipe.progress import progress_bar
from anima_pipe.runtime import choose_device, say, torch_dtype

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from anima_pipe.drawing.painter import EncodedPrompt, Painter
    from anima_pipe.kohya.resolved import Resolved
    from anima_pipe.records import PreviewPrompt


@click.command(
    "sample",
    help=help_text(__doc__),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config_file",
    metavar="PATH",
    help="train_args.toml that names the model's files, and prompts.",
)
@click.option("--pretrained_model_name_or_path", metavar="PATH", help="The transformer.")
@click.option(
    "--llm_adapter_path", metavar="PATH", help="The text adapter, where it is a file of its own."
)
@click.option("--vae", metavar="PATH", help="The VAE.")
@click.option("--qwen3", metavar="PATH", help="Qwen3, a folder or a file.")
@click.option("--t5_tokenizer_dir", metavar="PATH", help="Folder of the T5 tokenizer.")
@click.option("--demo", "on_demo", is_flag=True, help="Draw with the embedded tiny model.")
@click.option("--device", metavar="NAME", help="Where to compute: auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--mixed_precision",
    metavar="NAME",
    help="no, fp16 or bf16. [default: bf16 on a GPU, else no, which is fp32]",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="An adapter of any style, at strength 1 unless said; may be given several times.",
)
@click.option(
    "--prompt",
    "lines",
    multiple=True,
    metavar="TEXT",
    help="A prompt, with settings behind it as in sample_prompts; may be given several times.",
)
@click.option("--sample_prompts", metavar="PATH", help="File of prompts: .txt, .toml or .json.")
@click.option("--negative", metavar="TEXT", help="Negative prompt, where a prompt says none.")
@click.option("--width", metavar="N", help="In pixels, where a prompt says none. [default: 1024]")
@click.option("--height", metavar="N", help="In pixels, where a prompt says none. [default: 1024]")
@click.option("--steps", metavar="N", help="Euler steps. [default: 30]")
@click.option("--cfg", metavar="X", help="Classifier-free guidance; 1: none. [default: 4]")
@click.option("--seed", metavar="N", help="Of the noise. [default: 0]")
@click.option("--shift", metavar="X", help="Shift of the noise levels. [default: 3]")
@click.option(
    "--xy",
    nargs=2,
    metavar="AXIS AXIS",
    help="A sheet per prompt: columns, then rows. An axis is adapter=FILE,FILE (or none, or a "
    "pattern with *), strength=0,0.5,1, or values of seed, cfg, steps, shift.",
)
@click.option(
    "--output_dir",
    metavar="PATH",
    default="samples",
    show_default=True,
    help="Folder of the pictures.",
)
@click.option(
    "--output_name",
    metavar="NAME",
    default="sample",
    show_default=True,
    help="Start of their names.",
)
def command(
    adapters: tuple[str, ...],
    lines: tuple[str, ...],
    xy: tuple[str, str] | None,
    output_dir: str,
    output_name: str,
    **given: Any,
) -> None:
    """Draw what the options ask for."""

    def work() -> int:
        options = _model_options(given)
        prompts = _prompts(options, lines, {name: given[name] for name in LETTERS})
        fixed = tuple(map(path_and_strength, adapters))
        shots = [Shot(prompt=prompt, adapters=fixed) for prompt in prompts]
        axes = [parse_axis(axis) for axis in xy] if xy else []
        grids = [grid(shot, *axes) if axes else [[shot]] for shot in shots]
        distinct = dict.fromkeys(shot for rows in grids for row in rows for shot in row)
        named = Path(output_dir) / output_name
        folder, name = named.parent, named.name
        paths = {
            shot: folder / f"{name}_{number:03d}.png"
            for number, shot in enumerate(distinct, next_number(folder, name))
        }
        cells = _draw_all(paths, options)
        sheets = f"{name}_xy"
        for number, rows in enumerate(grids if axes else [], next_number(folder, sheets)):
            from anima_pipe.drawing.painter import save_picture
            from anima_pipe.drawing.sheets import draw_sheet

            x, y = axes
            sheet = draw_sheet(y.labels, x.labels, [[cells[shot] for shot in row] for row in rows])
            path = folder / f"{sheets}_{number:02d}.png"
            save_picture(sheet, path)
            say(f"sheet     {path}")
        return 0

    sys.exit(ending_of(work))


def next_number(folder: Path, name: str) -> int:
    """Return the number after the last of the pictures `<name>_<number>.png`, which stay."""
    numbered = re.compile(rf"{re.escape(name)}_(\d+)\.png")
    found = (numbered.fullmatch(path.name) for path in folder.glob("*.png"))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _model_options(given: dict[str, Any]) -> Resolved:
    """Return options of training that name every file of the model.

    Raises:
        ConfigError: One is named nowhere.
    """
    names = (*MODEL_OPTIONS, "llm_adapter_path", "device", "mixed_precision", "sample_prompts")
    values = {name: given[name] for name in names if given[name] is not None}
    if given["on_demo"]:
        values |= {
            name: str(path) for name, path in demo.options().items() if name in MODEL_OPTIONS
        }
    file = Path(given["config_file"]) if given["config_file"] else None
    options = resolve(TRAIN, values, file)
    if given["on_demo"] and given["llm_adapter_path"] is None:
        # The file's is of the file's model.
        written = {n: item for n, item in options.written.items() if n != "llm_adapter_path"}
        options = replace(options, written=written)
    options = with_recorded_models(options, *MODEL_OPTIONS)
    options = replace(options, command="sample")
    options.require(*MODEL_OPTIONS)
    return options


def _prompts(
    options: Resolved, lines: Sequence[str], settings: dict[str, str | None]
) -> list[PreviewPrompt]:
    """Return the prompts of the command line, else those of the file.

    Raises:
        ConfigError: There are none, or one cannot be read.
    """
    letters = {LETTERS[name]: value for name, value in settings.items()}
    defaults = with_settings(BARE, letters, "command line")
    prompts = [parse_prompt(line, "--prompt", defaults) for line in lines]
    file: Path | None = options.value("sample_prompts")
    if file and (not prompts or options.given("sample_prompts") == "command line"):
        prompts += read_sample_prompts(file, defaults)
    if not prompts:
        raise ConfigError("there is nothing to draw", 'give --prompt "..." or --sample_prompts')
    return prompts


def _draw_all(paths: dict[Shot, Path], options: Resolved) -> dict[Shot, Image]:
    """Draw every picture and save it; return their cells for sheets."""
    from anima_pipe.adapters import load_adapter
    from anima_pipe.adapters.reading import read_adapter_file
    from anima_pipe.drawing.painter import base_name, parameters_text, save_picture
    from anima_pipe.drawing.sheets import cell_of

    for file in dict.fromkeys(path for shot in paths for path, _ in shot.adapters):
        read_adapter_file(file)
    device = choose_device(options.value("device"))
    encoded = _encoded([shot.prompt for shot in paths], options, device)
    painter = _painter(options, device)
    model = base_name(
        options.value("pretrained_model_name_or_path"), options.value("llm_adapter_path")
    )
    cells: dict[Shot, Image] = {}
    with progress_bar(len(paths), "picture") as bar:
        for files, shots in by_files(list(paths)):
            with ExitStack() as taken_off:
                loaded = [load_adapter(file, painter.transformer) for file in files]
                for adapter in loaded:
                    taken_off.callback(adapter.remove)
                for shot in shots:
                    for adapter, (_, strength) in zip(loaded, shot.adapters, strict=True):
                        adapter.set_strength(strength)
                    picture = painter.draw(encoded[shot.prompt])
                    named = [(path.stem, strength) for path, strength in shot.adapters]
                    save_picture(picture, paths[shot], parameters_text(shot.prompt, model, named))
                    cells[shot] = cell_of(picture)
                    bar.update()
    for path in paths.values():
        say(f"picture   {path}")
    return cells


def _encoded(
    prompts: Iterable[PreviewPrompt], options: Resolved, device: torch.device
) -> dict[PreviewPrompt, EncodedPrompt]:
    """Encode every distinct text once; the encoder is freed on return."""
    import torch

    from anima_pipe.drawing.painter import encode_prompts
    from anima_pipe.encoders import load_text_encoder

    encoder = load_text_encoder(
        options.value("qwen3"),
        options.value("t5_tokenizer_dir"),
        dtype=torch.float32,
        device=device,
    )
    encoded = encode_prompts(prompts, encoder)
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return encoded


def _painter(options: Resolved, device: torch.device) -> Painter:
    from anima_pipe.drawing.painter import LazyVae, Painter
    from anima_pipe.model import load_transformer

    on_gpu = options.given("mixed_precision") is None and device.type == "cuda"
    dtype = torch_dtype("bf16" if on_gpu else options.value("mixed_precision"))
    transformer = load_transformer(
        options.value("pretrained_model_name_or_path"),
        dtype,
        device,
        llm_adapter=options.value("llm_adapter_path"),
    )
    return Painter(transformer, LazyVae(options.value("vae"), device), device, dtype)
