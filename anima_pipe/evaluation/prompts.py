"""Drawing prompts with a model's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from anima_pipe.drawing.painter import LazyVae, Painter, encode_prompts
from anima_pipe.encoders import load_text_encoder
from anima_pipe.model import load_transformer
from anima_pipe.records import PreviewPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of a model that draws."""

    transformer: Path
    vae: Path
    qwen: Path
    t5_tokenizer: Path


def draw_prompts(files: ModelFiles, prompts: Sequence[PreviewPrompt]) -> list[Image.Image]:
    """Draw prompts in fp32 on the processor, each at its own size.

    Raises:
        CheckpointError: A file of the model is missing, damaged or of another model.
    """
    encoded = encode_prompts(prompts, load_text_encoder(files.qwen, files.t5_tokenizer))
    place = torch.device("cpu")
    transformer = load_transformer(files.transformer)
    painter = Painter(transformer, LazyVae(files.vae, place), place, torch.float32)
    return [painter.draw(encoded[prompt]) for prompt in prompts]
