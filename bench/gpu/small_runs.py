"""Short runs of the real commands on the embedded tiny model and a few of its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from commands import anima_pipe, demo_pictures, write_dataset
from safetensors.torch import load_file

from gpu.setting import Setting

Options = dict[str, object]


def cached_pictures(setting: Setting) -> Options:
    """Return options that name a dataset and its caches; the first part that asks makes them.

    They are filled on the processor, so that every run trains on the same numbers.
    """
    folder = setting.scratch / "small"
    done = folder / "done.json"
    if not done.exists():
        pictures = folder / "pictures"
        if not pictures.exists():
            demo_pictures(pictures)
        names = {"dataset_config": write_dataset(folder / "dataset.toml", pictures)}
        names["cache_dir"] = folder / "cache"
        anima_pipe("cache-latents", **names).ok()
        anima_pipe("encode-text", **names).ok()
        done.write_text(json.dumps({name: str(path) for name, path in names.items()}))
    return json.loads(done.read_text())


class Trained:
    """What a run of `anima-pipe train` left behind."""

    def __init__(self, folder: Path, summary: Options) -> None:
        self.folder = folder
        self.summary = summary

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by their names in its file."""
        return load_file(str(self.summary["output"]))

    @property
    def losses(self) -> torch.Tensor:
        """The loss of every step, Float64[steps]."""
        (file,) = self.folder.glob("logs/*/metrics.jsonl")
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        losses = [row["loss/current"] for row in rows if "loss/current" in row]
        return torch.tensor(losses, dtype=torch.float64)

    def state(self, step: int) -> Path:
        """Return the folder of the state that was saved at a step."""
        (folder,) = self.folder.glob(f"*step{step:08d}-state")
        return folder


def train(setting: Setting, name: str, device: torch.device | str, **options: object) -> Trained:
    """Train in this process; the results go into a folder of that name."""
    folder = setting.scratch / name
    given: Options = {
        **cached_pictures(setting),
        "device": str(device),
        "output_dir": folder,
        "logging_dir": folder / "logs",
        "log_with": "tensorboard",
        **options,
    }
    ended = anima_pipe("train", folder.with_suffix(".json"), **given).ok()
    assert ended.summary is not None
    return Trained(folder, ended.summary)
