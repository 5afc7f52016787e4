"""The whole way by `anima-pipe all` on the card: encoding, training, previews, a verified file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.small_runs import cached_pictures

EXPORT_WITHIN = 1e-2
"""Of the changes to the weights: what half precision rounds off."""


def measure(setting: Setting, results: Results) -> None:
    """Run the command, look at what it says it did, then draw with the file."""
    folder = setting.scratch / "demo"
    with results.attempt("anima-pipe all"):
        stages = run_all(setting, folder)
        for name in ("cache-latents", "encode-text"):
            results.holds(f"all: {name} encoded something", so=stages[name]["encoded"] > 0)
        train, export = stages["train"], stages["export-comfy"]
        results.figure("The demo by all", of="seconds of training", value=train["seconds"])
        results.figure("The demo by all", of="first loss", value=train["first_loss"])
        results.figure("The demo by all", of="final loss", value=train["final_loss"])
        if not setting.small:
            results.holds("all: the loss fell", so=train["final_loss"] < train["first_loss"])
        results.holds("all: the export is verified", so=export["verified"])
        error = export["largest_difference"]
        results.check("all: the export changes weights as the adapter", error, EXPORT_WITHIN)
        check_pictures("previews", sorted(folder.glob("sample/*.png")), results)
    with results.attempt("anima-pipe sample"):
        check_pictures("sample", draw(setting, folder), results)


def run_all(setting: Setting, folder: Path) -> dict[str, dict[str, object]]:
    """Run all five stages on the demo, or on a few pictures of it; return their summaries."""
    command = ["all", "--device", str(setting.device), "--output_dir", str(folder)]
    command += ["--summary_json", str(summary_of(folder))]
    if setting.small:
        prompts = setting.scratch / "prompts.txt"
        prompts.write_text("fox --w 64 --h 64 --s 2 --l 3\n", encoding="utf-8")
        command += ["--dataset_config", str(cached_pictures(setting)["dataset_config"])]
        command += ["--max_train_steps", "2", "--sample_prompts", str(prompts)]
        command += ["--max_data_loader_n_workers", "0"]
    anima_pipe(command)
    return read_summary(folder)["stages"]


def summary_of(folder: Path) -> Path:
    """Return where the command's summary is, by the folder of its results."""
    return folder.with_suffix(".json")


def read_summary(folder: Path) -> dict[str, Any]:
    """Return it."""
    return json.loads(summary_of(folder).read_text(encoding="utf-8"))


def draw(setting: Setting, folder: Path) -> list[Path]:
    """Draw with the exported file by the command of that name."""
    adapter: str = read_summary(folder)["output"]
    size, steps = ("64", "2") if setting.small else ("256", "8")
    pictures = setting.scratch / "pictures-drawn"
    command = ["sample", "--demo", "--device", str(setting.device), "--adapter", adapter]
    command += ["--prompt", "fox", "--width", size, "--height", size, "--steps", steps]
    anima_pipe([*command, "--output_dir", str(pictures)])
    return sorted(pictures.glob("*.png"))


def anima_pipe(command: list[str]) -> None:
    """Run a command in a process of its own, as one types it."""
    subprocess.run([sys.executable, "-m", "anima_pipe.cli", *command], check=True)


def check_pictures(what: str, paths: list[Path], results: Results) -> None:
    """Check that there are pictures and that each shows something."""
    spreads = [np.asarray(Image.open(path).convert("RGB"), dtype=float).std() for path in paths]
    results.holds(f"{what}: {len(paths)} pictures, none of one colour", so=min(spreads) > 1)


if __name__ == "__main__":
    run_part(measure)
