"""Pictures drawn while training, as inference programs would draw them, and their contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from anima_pipe.batches import pad_texts
from anima_pipe.denoise import Velocity, euler, guided, simple_schedule
from anima_pipe.encoders import ImageVae, load_vae
from anima_pipe.files import write_atomically
from anima_pipe.model import AnimaTransformer
from anima_pipe.records import Moment, PreviewPrompt, TextCondition
from anima_pipe.shards import Cache, text_key

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Normalised latents Float[1, 16, H, W] -> pictures Float[1, 3, 8H, 8W] in [-1, 1]."""

LATENT_CHANNELS = 16
VAE_STRIDE = 8
DECODE_TILE = 1024
"""Side of the tiles that larger pictures are decoded in, in pixels."""
SHEET_CELL = 320
"""Longest side of a picture on the contact sheet, in pixels."""
SHEET_MARGIN = 8
SHEET_LABEL = 22
"""Height of the line above each column, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """A prompt with its texts encoded, so that no text encoder is needed while training."""

    prompt: PreviewPrompt
    positive: TextCondition
    negative: TextCondition


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewConfig:
    """Where previews go and when they are drawn; at the end of the run they always are."""

    folder: Path
    name: str
    at_first: bool = False
    every_n_steps: int | None = None
    every_n_epochs: int | None = None


class Previews:
    """The hook that draws every prompt when it is due.

    Args:
        transformer: The model that is trained, adapter and all.
        prompts: What to draw.
        decode: From latents to pictures.
        config: Where and when.
        device: Where the transformer is.
        dtype: Of the transformer's weights.
    """

    reads_weights = True

    def __init__(
        self,
        transformer: AnimaTransformer,
        prompts: Sequence[EncodedPrompt],
        decode: Decode,
        config: PreviewConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.transformer = transformer
        self.prompts = prompts
        self.decode = decode
        self.config = config
        self.device = device
        self.dtype = dtype
        self._columns: list[tuple[str, list[Image.Image]]] = []

    @property
    def sheet_path(self) -> Path:
        """The contact sheet: one row per prompt, one column per time of drawing."""
        return self.config.folder / f"{self.config.name}.png"

    def due(self, moment: Moment) -> bool:
        """Tell whether previews are due."""
        config = self.config
        if not moment.after_step:
            return config.at_first and moment.step == 0
        return moment.is_last or moment.falls_on(config.every_n_steps, config.every_n_epochs)

    def at(self, moment: Moment) -> None:
        """Draw every prompt, and the contact sheet anew."""
        config = self.config
        with _evaluating(self.transformer):
            pictures = [self.draw(prompt) for prompt in self.prompts]
        for number, (prompt, picture) in enumerate(zip(self.prompts, pictures, strict=True)):
            name = f"{config.name}_{moment.step:06d}_{number:02d}.png"
            _save_picture(picture, config.folder / name, prompt.prompt)
        self._columns.append((f"step {moment.step}", pictures))
        write_atomically(self.sheet_path, _png_bytes(contact_sheet(self._columns)))

    def draw(self, encoded: EncodedPrompt) -> Image.Image:
        """Denoise and decode one prompt; its seed alone decides the noise."""
        prompt = encoded.prompt
        shape = (1, LATENT_CHANNELS, prompt.height // VAE_STRIDE, prompt.width // VAE_STRIDE)
        generator = torch.Generator().manual_seed(prompt.seed)
        noise = torch.randn(shape, generator=generator).to(self.device)
        velocity = guided(
            self._velocity(encoded.positive), self._velocity(encoded.negative), prompt.guidance
        )
        sigmas = simple_schedule(prompt.steps, prompt.shift).to(self.device)
        return to_picture(self.decode(euler(noise, sigmas, velocity)))

    def _velocity(self, condition: TextCondition) -> Velocity:
        text = pad_texts([condition]).to(self.device, self.dtype)
        context = self.transformer.preprocess_text_embeds(
            text.qwen_hidden, text.t5_ids, text.qwen_mask, text.t5_mask
        )
        return lambda latents, sigma: self.transformer(latents.to(self.dtype), sigma, context)


class LazyVae:
    """Decodes latents with a VAE that is loaded when the first preview is drawn.

    Args:
        path: The VAE's file.
        device: Where to decode.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self._vae: ImageVae | None = None

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode normalised latents, Float[1, 16, H, W], in tiles where they are large."""
        if self._vae is None:
            self._vae = load_vae(self.path, dtype=torch.float32, device=self.device)
        return self._vae.decode(latents, tile=DECODE_TILE)


def encoded_prompts(prompts: Sequence[PreviewPrompt], cache: Cache) -> list[EncodedPrompt]:
    """Take the prompts' texts from the cache.

    Raises:
        CacheError: A prompt's text is not there.
    """
    return [
        EncodedPrompt(
            prompt=prompt,
            positive=cache.text[text_key(prompt.prompt)],
            negative=cache.text[text_key(prompt.negative)],
        )
        for prompt in prompts
    ]


def to_picture(pixels: torch.Tensor) -> Image.Image:
    """Turn Float[1, 3, height, width] in [-1, 1] into an 8-bit RGB picture."""
    scaled = ((pixels[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(scaled.permute(1, 2, 0).cpu().numpy()))


def contact_sheet(columns: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Lay pictures out in labelled columns of equal rows, each scaled down to its cell."""
    rows = [
        max(_cell_size(pictures[row]) for _, pictures in columns)
        for row in range(len(columns[0][1]))
    ]
    width = max(size[0] for size in rows) + SHEET_MARGIN
    height = SHEET_LABEL + sum(size[1] + SHEET_MARGIN for size in rows)
    sheet = Image.new("RGB", (width * len(columns) + SHEET_MARGIN, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (label, pictures) in enumerate(columns):
        left, top = SHEET_MARGIN + number * width, SHEET_LABEL
        pen.text((left, 3), label, fill="black", font=font)
        for picture, size in zip(pictures, rows, strict=True):
            sheet.paste(picture.resize(_cell_size(picture), Image.Resampling.LANCZOS), (left, top))
            top += size[1] + SHEET_MARGIN
    return sheet


def _cell_size(picture: Image.Image) -> tuple[int, int]:
    scale = min(1.0, SHEET_CELL / max(picture.size))
    return round(picture.width * scale), round(picture.height * scale)


def _save_picture(picture: Image.Image, path: Path, prompt: PreviewPrompt) -> None:
    """Write a PNG that carries the line it was drawn from."""
    info = PngInfo()
    info.add_itxt(
        "parameters",
        f"{prompt.prompt} --n {prompt.negative} --w {prompt.width} --h {prompt.height} "
        f"--s {prompt.steps} --l {prompt.guidance:g} --d {prompt.seed}",
    )
    write_atomically(path, _png_bytes(picture, info))


def _png_bytes(picture: Image.Image, info: PngInfo | None = None) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@contextmanager
def _evaluating(module: torch.nn.Module) -> Generator[None]:
    """Switch dropout off and gradients, and put the mode back."""
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        module.train(training)
