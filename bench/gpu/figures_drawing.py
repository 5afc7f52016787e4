"""Drawing as previews and `anima-pipe sample` do: thirty steps with guidance, then the VAE."""

from __future__ import annotations

import torch

from anima_pipe.drawing.painter import EncodedPrompt, LazyVae, Painter
from anima_pipe.model import load_transformer
from anima_pipe.records import PreviewPrompt, TextCondition
from gpu.random_models import write_vae
from gpu.results import Results
from gpu.setting import Setting, run_part
from gpu.timing import PeakMemory, seconds_each

CAPTION_TOKENS = 80


def measure(setting: Setting, results: Results) -> None:
    """Draw twice; the first time loads the VAE and chooses kernels."""
    transformer = load_transformer(setting.checkpoint, setting.dtype, setting.device)
    width = transformer.config.llm_adapter.source_width
    vae = LazyVae(write_vae(setting), setting.device)
    painter = Painter(transformer, vae, setting.device, setting.dtype)
    steps = 2 if setting.small else 30
    encoded = EncodedPrompt(
        prompt=PreviewPrompt(
            prompt="", width=setting.pixels, height=setting.pixels, steps=steps, guidance=4.0
        ),
        positive=random_condition(width),
        negative=random_condition(width),
    )
    rounds = {"rounds": 1, "settling": 0} if setting.small else {"rounds": 2, "settling": 1}
    peak = PeakMemory(setting.device)
    denoising, _host = seconds_each(lambda: painter.denoise(encoded), setting.device, **rounds)
    whole, _host = seconds_each(lambda: painter.draw(encoded), setting.device, **rounds)
    results.figure(
        "Drawing",
        pixels=setting.pixels,
        steps=steps,
        guidance=4.0,
        **{"s per picture": min(whole), "s of denoising": min(denoising)},
        **peak.in_gib(),
    )
    latents = painter.denoise(encoded)
    results.holds("drawing: the latents are finite", so=bool(latents.isfinite().all()))


def random_condition(width: int) -> TextCondition:
    """Return a caption's encoding that says nothing."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(CAPTION_TOKENS, width, generator=generator)
    return TextCondition(hidden, torch.randint(2, 90, (CAPTION_TOKENS,), generator=generator).int())


if __name__ == "__main__":
    run_part(measure)
