"""The stages as a campaign of faults sees them: how one is run again, and what it has come to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from commands import files_in
from faults import Extent, Fault, Finished, command, extents, run
from safetensors.torch import save

from anima_pipe.records import TextCondition
from anima_pipe.shards import open_cache

STEPS = 4

Result = dict[str, str]
"""Hashes of what a stage has come to, by name."""

IN_PROGRESS = (".tmp", ".old", ".unfinished", ".lease")
"""Endings of files that are there while somebody works, and after a kill."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command whose results lie in one folder."""

    name: str
    program: Callable[[Path], list[str]]
    """What is typed for a folder, the first time and again."""
    result: Callable[[Path], Result]
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, folder: Path, fault: Fault | None = None) -> Finished:
        """Run it, as often as its own words ask for it."""
        program = self.program(folder)
        ended = run(program, fault, self.environment)
        if ended.code == 2 and (going_on := what_it_says_to_do(ended.said)) is not None:
            again = [*afresh(program), *going_on]
            ended = run(again, fault, self.environment)
        return ended


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a stage comes to if it is left alone."""

    result: Result
    extents: Mapping[str, Extent]
    """How much each of its processes does, by their names."""
    total_bytes: int
    """Of the files that it leaves."""


def undisturbed(stage: Stage, folder: Path) -> Undisturbed:
    """Run a stage in a new folder, in which its processes note what they do."""
    folder.mkdir()
    note = folder.with_name(f"{folder.name}-noted")
    note.mkdir()
    stage.run(folder, Fault(within=str(folder), note=str(note))).ok()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Undisturbed(
        result=stage.result(folder), extents=extents(note, max(sizes)), total_bytes=sum(sizes)
    )


def afresh(program: list[str]) -> list[str]:
    """Return a command that ends in --resume without that."""
    return program[: program.index("--resume")]


def what_it_says_to_do(said: str) -> list[str] | None:
    """Return how a training is to go on that was told to go on with its latest state."""
    if "Fix: leave out resume to start afresh" in said:
        return []
    if "the run's last" in said and "stage train failed" in said:
        return []  # `all` was killed behind the training: it trains again
    found = re.search(r"Fix: --resume (\S+) trains on", said)
    return ["--resume", found[1]] if found else None


def is_done(ended: Finished) -> bool:
    """Tell whether a stage came to its end: now, or before a kill that came when all was done."""
    return ended.code == 0 or (ended.code == 2 and "the run's last" in ended.said)


def left_in_progress(folder: Path) -> list[str]:
    """Return files that nobody may leave behind who ended well."""
    return [name for name in files_in(folder) if name.endswith(IN_PROGRESS)]


def samples_in(cache: Path) -> Result:
    """Return every sample of a cache, having made sure that all are whole."""
    found: Result = {}
    opened = open_cache(cache)
    for kind in ("latents", "text"):
        store = getattr(opened, kind)
        assert store.verify() == []
        found |= {f"{kind} {key}": _digest_of(store[key]) for key in store}
    return found


def _digest_of(value: object) -> str:
    if isinstance(value, TextCondition):
        return digest(save({"qwen": value.qwen_hidden, "t5": value.t5_ids}))
    return digest(save({"latent": value}))  # pyright: ignore[reportArgumentType]


def digest(content: bytes) -> str:
    """Return a short hash."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def files_of(folder: Path, pattern: str = "*") -> Result:
    """Return the files in a folder."""
    return {path.name: digest(path.read_bytes()) for path in sorted(folder.glob(pattern))}


def caching(name: str, dataset: Path) -> Stage:
    """Return a stage that fills a cache."""
    workers = {"max_data_loader_n_workers": 1} if name == "cache-latents" else {}
    return Stage(
        name=name,
        program=lambda folder: command(name, dataset_config=dataset, cache_dir=folder, **workers),
        result=samples_in,
    )


SAVING = {"max_train_steps": STEPS, "save_state": True, "save_every_n_steps": 1}


def training(cached: dict[str, object]) -> Stage:
    """Return training on caches that are complete."""
    given = {**cached, **SAVING, "max_data_loader_n_workers": 0}
    return Stage(
        name="train",
        program=lambda folder: command("train", **given, output_dir=folder, resume="latest"),
        result=lambda folder: files_of(folder, "*.safetensors"),
    )


def exporting(adapter: Path) -> Stage:
    """Return the export of an adapter."""
    return Stage(
        name="export-comfy",
        program=lambda folder: command("export-comfy", input=adapter, output=folder / "fox.st"),
        result=files_of,
    )


def fetching(environment: Mapping[str, str]) -> Stage:
    """Return fetching from a hub that the environment leads to."""
    return Stage(
        name="fetch-tokenizer",
        program=lambda folder: command("fetch-tokenizer", t5_tokenizer_dir=folder / "t5"),
        result=lambda folder: files_of(folder / "t5"),
        environment=environment,
    )


def all_stages(dataset: Path, config: Path) -> Stage:
    """Return the five stages in turn.

    Args:
        dataset: What they read.
        config: A file that is written; where there is none, `all` draws previews too.
    """
    config.write_text("")
    given = {"config_file": config, "dataset_config": dataset, **SAVING}
    return Stage(
        name="all",
        program=lambda folder: command("all", **given, output_dir=folder, resume="latest"),
        result=lambda folder: {
            **samples_in(folder / "cache"),
            **files_of(folder, "*.safetensors"),
            **files_of(folder / "first_look"),
        },
    )
