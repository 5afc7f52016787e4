"""Run the five stages in turn, each in a process of its own, exactly as one would type them.

Without --config_file the embedded tiny model is trained: that shows the whole way in a minute, and
its adapter fits no other model. Without --dataset_config either, so are the embedded pictures.
Where the model itself is trained, its checkpoint is read as it is, and export-comfy is left out.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anima_pipe import demo
from anima_pipe.cli.ending import INTERRUPTED, TERMINATED
from anima_pipe.cli.next_step import after_first_look, to_diffusion_models
from anima_pipe.cli.stage_command import stage_command
from anima_pipe.cli.typed import handing_over, is_secret
from anima_pipe.errors import PipeError
from anima_pipe.files import make_folder, require_readable_name, write_atomically
from anima_pipe.hub.home import MODEL_OPTIONS
from anima_pipe.kohya.no_network import trains_the_model
from anima_pipe.kohya.options import options_of
from anima_pipe.kohya.resolve import COMMAND_LINE
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import Kind, Option
from anima_pipe.kohya.rules import SEED_SHIFT
from anima_pipe.plain_text import json_text, on_one_line
from anima_pipe.runs.interrupts import Terminated
from anima_pipe.runs.sole_writer import sole_user
from anima_pipe.runtime import SAID_BEFORE, say, warn
from anima_pipe.source.prompts import escaped

STAGES = ("fetch-tokenizer", "cache-latents", "encode-text", "train")
"""Those that take the user's options as they are; export-comfy takes what train has written."""

OUTPUT = Path("output")
"""Where results go that nothing else is said of, each in a folder of its own."""

ECHO_WIDTH = 100
"""Of the lines that show a stage's command."""
BREAK = " \\"
"""What a shell takes for a line that goes on."""

FIRST_LOOK_PROMPTS = 4
FIRST_LOOK_SETTINGS = {"width": 256, "height": 256, "sample_steps": 8, "scale": 1}
"""Of a first look's previews: those of the demo's prompts."""

Given = Mapping[str, object]
"""Options by name, as they are written on a command line: text, or true and false, or several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllSummary:
    """Each stage's summary, and the file they led to."""

    output: str
    output_bytes: int
    stages: dict[str, dict[str, Any]]


class StageFailedError(PipeError):
    """A stage ended with an error, which it has printed itself."""


def run(options: Resolved) -> AllSummary:
    """Run the five stages; stop at the first that fails."""
    if named := options.value("output_dir"):
        # Not by the stage that writes the adapter, hours of encoding later.
        require_readable_name(named, "give another output_dir")
    given = with_defaults(options)
    folder = Path(str(given["output_dir"]))
    make_folder(folder)
    with sole_user(folder), TemporaryDirectory() as notes:
        said = Path(notes) / "said"
        said.write_text("".join(f"{json.dumps(text)}\n" for text in _warnings(options)))
        summaries = {name: _run_stage(name, given, folder, said) for name in STAGES}
        output = _trained_file(summaries["train"])
        if not trains_the_model(options):
            trained, output = output, _exported(output, given)
            exported = {**given, "input": trained, "output": output}
            summaries["export-comfy"] = _run_stage("export-comfy", exported, folder, said)
    summary = AllSummary(output=str(output), output_bytes=output.stat().st_size, stages=summaries)
    _report(summary, "checkpoint" if trains_the_model(options) else "adapter")
    if _on_embedded_model(given):
        say(*after_first_look(_dataset_of(given)))
    elif trains_the_model(options):
        say(f"next           {to_diffusion_models(output)}")
    return summary


def _on_embedded_model(given: Given) -> bool:
    """Tell whether options name the embedded model, whose adapters fit no other."""
    named = given.get("pretrained_model_name_or_path")
    return named is not None and Path(str(named)).resolve() == demo.DEMO_TRANSFORMER.resolve()


def _dataset_of(given: Given) -> Path | None:
    """Return the user's own dataset, if it is one."""
    named = given.get("dataset_config") or given.get("train_data_dir")
    return None if named is None or named == demo.DEMO_DATASET else Path(str(named))


def _exported(trained: Path, given: Given) -> Path:
    """Return where an adapter's exported file goes: what was a first look is none for ComfyUI."""
    if _on_embedded_model(given) and _dataset_of(given):
        name = f"{trained.stem}-for-embedded-model{trained.suffix}"
        return trained.parent / "first_look" / name
    return trained.parent / "comfyui" / trained.name


def _trained_file(summary: Mapping[str, Any]) -> Path:
    """Return the file that training ended with.

    Raises:
        StageFailedError: It was stopped before its end.
    """
    if summary["output"] is None:
        raise StageFailedError(
            f"training was stopped at step {summary['steps']}, before its end",
            f"go on with the same command and --resume {summary['state_dir']}",
        )
    return Path(summary["output"])


def with_defaults(options: Resolved) -> dict[str, object]:
    """Complete what the command line gave: where results go, and the embedded model's files."""
    given = {
        # That spelling means more than the option's own name.
        SEED_SHIFT if item.spelling == SEED_SHIFT else name: item.given
        for name, item in options.written.items()
        if item.place == COMMAND_LINE and name != "summary_json"
    }
    if "config_file" in given:
        # Named on the stages' command lines, so that what is printed can be typed again.
        noted = {name: path for name in MODEL_OPTIONS if (path := _noted(options, name))}
        given = {"output_dir": options.value("output_dir"), **noted, **given}
    else:
        defaults = {"output_dir": OUTPUT / "demo", **demo.options()}
        if dataset := given.get("dataset_config") or given.get("train_data_dir"):
            warn("no configuration given: this trains the embedded tiny model, for a first look")
            del defaults["dataset_config"]
            # A name of its own, so that one first look does not replace another.
            path = Path(str(dataset)).resolve()
            name = on_one_line(path.name if path.is_dir() else path.stem).replace("\\", "_")
            defaults |= {"output_dir": OUTPUT / name, "output_name": name}
            if "sample_prompts" not in given:
                folder = Path(str(given.get("output_dir", defaults["output_dir"])))
                defaults |= _prompts_of(options, folder)
        given = {**defaults, **given}
    if options.given("cache_dir") is None:
        given["cache_dir"] = Path(str(given["output_dir"])) / "cache"
    if options.given("logging_dir") is None:
        given["logging_dir"] = Path(str(given["output_dir"])) / "logs"
    return given


def _prompts_of(options: Resolved, folder: Path) -> dict[str, object]:
    """Write prompts of previews from a few of the dataset's own captions; return the option.

    Returns:
        Nothing where the dataset cannot be read: the stage that needs it will say why.
    """
    from anima_pipe.dataset.links import refusal
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.probes import captioned
    from anima_pipe.kohya.caching import cache_folder
    from anima_pipe.kohya.datasets import examine_datasets

    try:
        refused = refusal(cache_folder(options), follow_links=options.value("follow_links"))
        pictures = find_pictures(examine_datasets(options).datasets, links_refused=refused)
        texts = list(dict.fromkeys(caption for _, caption in captioned(pictures)))
    except PipeError:
        return {}
    chosen = [text for text in texts if text][:: max(1, len(texts) // FIRST_LOOK_PROMPTS)]
    prompts = [
        {"prompt": escaped(text), **FIRST_LOOK_SETTINGS, "seed": number}
        for number, text in enumerate(chosen[:FIRST_LOOK_PROMPTS], 1)
    ]
    if not prompts:
        return {}
    path = folder / "prompts.json"
    # Not lines: a caption may hold what would be a setting there.
    write_atomically(path, json_text(prompts, indent=1).encode())
    return {"sample_prompts": path}


def _noted(options: Resolved, name: str) -> object:
    """Return the model file that was taken because the user named none."""
    return None if options.given(name) else options.value(name)


def _warnings(options: Resolved) -> tuple[str, ...]:
    """Say what deserves a look in the dataset; return it with what was said of the options."""
    from anima_pipe.kohya.datasets import examine_datasets
    from anima_pipe.kohya.inspection import DATASETS

    named = any(options.value(name) for name in DATASETS)
    warnings = examine_datasets(options).warnings if named else []
    for warning in warnings:
        warn(warning)
    return (*options.warnings, *warnings)


def _run_stage(name: str, given: Given, folder: Path, said: Path) -> dict[str, Any]:
    """Run one stage with the options that it takes; return its summary.

    Args:
        name: Of the stage.
        given: Options, from which it takes its own.
        folder: Of the results.
        said: File of the warnings that it need not repeat.

    Raises:
        StageFailedError: It ended with an error.
        SystemExit: It was interrupted, which it has said itself.
    """
    summary_file = folder / "summaries" / f"{name}.json"
    say("", *shown_command(name, given))
    secret = {key: value for key, value in given.items() if is_secret(key, value)}
    typed = {key: value for key, value in given.items() if key not in secret}
    arguments = [name, *command_line(name, {**typed, "summary_json": summary_file})]
    # The arguments are the user's own, handed on without a shell.
    program = [sys.executable, "-m", "anima_pipe.cli"]
    environment = {**os.environ, SAID_BEFORE: str(said), **handing_over(_taken(name, secret))}
    code = _ending_of(subprocess.Popen([*program, *arguments], env=environment))  # noqa: S603
    if code in (INTERRUPTED, TERMINATED):
        sys.exit(code)
    if code != 0:
        raise StageFailedError(
            f"stage {name} failed",
            "mend what it says above and run the same command again: finished work is kept",
        )
    return json.loads(summary_file.read_text(encoding="utf-8"))


def _taken(name: str, given: Given) -> dict[str, object]:
    """Return those of some options that a stage takes."""
    spellings = {spelling for option in options_of(name) for spelling in option.spellings}
    return {spelling: value for spelling, value in given.items() if spelling in spellings}


def _ending_of(stage: subprocess.Popen[bytes]) -> int:
    """Wait for a stage; return its exit code.

    A Ctrl-C reaches the stage as well, a SIGTERM is passed on to it, and how to end is for it to
    decide: training first saves.
    """
    while True:
        try:
            return stage.wait()
        except Terminated:
            stage.terminate()
        except KeyboardInterrupt:
            continue


def shown_command(name: str, given: Given) -> list[str]:
    """Return a stage's command as one would type it, in lines where it is long.

    Paths below the working folder are shown from there.
    """
    near = {key: _from_here(value) for key, value in given.items()}
    lines = [f"$ anima-pipe {name}"]
    for piece in map(shlex.join, _pieces(name, near)):
        if len(lines[-1]) + len(piece) < ECHO_WIDTH - len(BREAK):
            lines[-1] += f" {piece}"
        else:
            lines[-1] += BREAK
            lines.append(f"      {piece}")
    return lines


def _from_here(value: object) -> object:
    """Return a path as it is called in the working folder, and anything else as it is."""
    if not isinstance(value, Path) or not value.is_relative_to(Path.cwd()):
        return value
    return value.relative_to(Path.cwd())


def command_line(name: str, given: Given) -> list[str]:
    """Write out the options that a stage takes, as one would type them."""
    return [argument for piece in _pieces(name, given) for argument in piece]


def _pieces(name: str, given: Given) -> Iterator[list[str]]:
    """Yield each option that a stage takes, with its value."""
    for option in options_of(name):
        for spelling in option.spellings:
            if (value := given.get(spelling)) is not None:
                yield _typed(option, spelling, value)


def _typed(option: Option, spelling: str, value: object) -> list[str]:
    if option.kind is Kind.FLAG:
        return [f"--{spelling}" if value else f"--no-{spelling}"]
    if option.kind in (Kind.TEXTS, Kind.PAIRS):
        assert isinstance(value, list | tuple)
        return [f"--{spelling}", *map(str, value)]
    return [f"--{spelling}", str(value)]


def _report(summary: AllSummary, what: str) -> None:
    """Say where the file is, how the loss went and where the pictures are."""
    train = summary.stages["train"]
    first, final = train["first_loss"], train["final_loss"]
    say("")
    say(f"{what:<14} {summary.output} ({summary.output_bytes / 1e6:.2f} MB)")
    say(f"loss           {first:.4f} at the start, {final:.4f} at the end")
    if train["contact_sheet"]:
        say(f"contact sheet  {train['contact_sheet']}")


command = stage_command("all", run, __doc__)
