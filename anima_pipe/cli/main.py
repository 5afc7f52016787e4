"""The `anima-pipe` group; a command's module is imported when the command is called."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Final

import click

import anima_pipe


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives, and what the overview says of it."""

    place: str
    """module:attribute"""
    summary: str


COMMANDS: Final = {
    "fetch-tokenizer": Entry(
        "stages.fetch_tokenizer:command", "Stage 1: the T5 tokenizer, fetched and checked."
    ),
    "fetch-models": Entry(
        "anima_pipe.cli.fetch_models:command", "Anima's files, from a hub or from ComfyUI."
    ),
    "cache-latents": Entry(
        "stages.bucket_and_cache_latents:command", "Stage 2: pictures to latent shards."
    ),
    "encode-text": Entry("stages.encode_text_qwen_t5:command", "Stage 3: captions to text shards."),
    "train": Entry("stages.train:command", "Stage 4: train an adapter on the shards."),
    "export-comfy": Entry(
        "stages.export_comfy:command", "Stage 5: write and verify the file for ComfyUI."
    ),
    "info": Entry("anima_pipe.cli.adapter_files:info", "What is in an adapter file."),
    "convert": Entry(
        "anima_pipe.cli.adapter_files:convert", "An adapter file in another style or dtype."
    ),
    "merge": Entry("anima_pipe.cli.adapter_files:merge", "Several adapters added up into one."),
    "resize": Entry("anima_pipe.cli.adapter_files:resize", "An adapter of a smaller rank."),
    "extract": Entry(
        "anima_pipe.cli.adapter_files:extract", "The adapter between two checkpoints."
    ),
    "sample": Entry(
        "anima_pipe.cli.sample:command", "Draw with adapters at any strengths; sheets to compare."
    ),
    "all": Entry("anima_pipe.cli.all_stages:command", "The five stages in turn."),
    "inspect": Entry(
        "anima_pipe.cli.inspect:command", "A page that shows a dataset as training sees it."
    ),
    "doctor": Entry("anima_pipe.cli.doctor:command", "What is there, and what to do next."),
    "cache": Entry("anima_pipe.cli.cache:command", "Look into a cache, check it, thin it out."),
    "config": Entry("anima_pipe.cli.config:command", "Explain options, check files."),
    "convert-config": Entry(
        "anima_pipe.cli.convert_config:command",
        "A root-style file or kohya_ss GUI preset, to Kohya's files.",
    ),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the commands in the order of work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of a command and return the command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.place.split(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has --help. Start with: anima-pipe all",
)
@click.version_option(anima_pipe.__version__, prog_name="anima-pipe")
def main() -> None:
    """Train LoRA and LoKr adapters of the Anima text-to-image model."""
