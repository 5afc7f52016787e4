"""From a file of the three-dimensional video VAE to the two-dimensional network for pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch

from anima_pipe.encoders.vae import LATENT_CHANNELS, PIXELS_PER_LATENT, ImageVae, VaeConfig
from anima_pipe.errors import CheckpointError
from anima_pipe.weights.files import check_names, landed, mapped_tensors
from anima_pipe.weights.kinds import VAE, wrong_kind

WANTED = "a Wan 2.1 or Qwen-Image VAE"
_GIVE_RELEASE = "Give the VAE of Wan 2.1, Qwen-Image or Anima's release, whole and unconverted."
PREFIXES = ("", "vae.", "first_stage_model.")
"""What bundlers put before the names."""

# Of diffusers' AutoencoderKLQwenImage, in order; the decoder's stages are renumbered apart.
_DIFFUSERS_NAMES = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"(middle\.[02]|samples\.\d+)\.norm1\.", r"\1.residual.0."),
    (r"(middle\.[02]|samples\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"(middle\.[02]|samples\.\d+)\.norm2\.", r"\1.residual.3."),
    (r"(middle\.[02]|samples\.\d+)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
# One name of each naming that no other model has: it tells the naming and the prefix.
_NATIVE_MARK = "encoder.downsamples.0.residual.0.gamma"
_DIFFUSERS_MARK = "encoder.down_blocks.0.norm1.gamma"
_DIFFUSERS_STAGE = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")
# Mixing over time; with one frame the network never calls them.
_TEMPORAL = re.compile(r"^(encoder\.down|decoder\.up)samples\.\d+\.time_conv\.(weight|bias)$")


def load_vae(
    path: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> ImageVae:
    """Load Wan 2.1's or Qwen-Image's VAE, by Wan's or diffusers' tensor names.

    The file is mapped, and its tensors are folded to two dimensions one by one.

    Args:
        path: A .safetensors file, or a torch file of nothing but tensors (.pth).
        dtype: Of the convolutions; norms and the latents' normalisation are fp32 always.
        device: Where to put it.

    Raises:
        CheckpointError: The file is missing, damaged, of another model, or not whole.
    """
    path = Path(path)
    stored = _by_native_names(path, mapped_tensors(path))
    config = _read_config(path, stored)
    folded = {name: _folded(name, tensor) for name, tensor in stored.items()}
    with torch.device("meta"):
        vae = ImageVae(config)
    needed = vae.state_dict()
    check_names(
        path,
        WANTED,
        _GIVE_RELEASE,
        expected={name: tensor.shape for name, tensor in needed.items()},
        found={name: tensor.shape for name, tensor in folded.items()},
    )
    place = torch.device(device)
    weights = {
        name: landed(tensor, torch.float32 if name.endswith("gamma") else dtype, place)
        for name, tensor in folded.items()
    }
    vae.load_state_dict(weights, assign=True)
    return vae.eval().requires_grad_(requires_grad=False)


def native_name(name: str, blocks_per_stage: int) -> str:
    """Return Wan's name of a tensor by diffusers' name of it.

    Args:
        name: As AutoencoderKLQwenImage has it.
        blocks_per_stage: Residual blocks in each of the decoder's stages: Wan numbers them, and
            the upsamplings between them, in one row.
    """

    def renumber(match: re.Match[str]) -> str:
        stage, kind, index = int(match[1]), match[2], int(match[3])
        position = stage * (blocks_per_stage + 1)
        return f"decoder.upsamples.{position + (index if kind == 'resnets' else blocks_per_stage)}."

    name = _DIFFUSERS_STAGE.sub(renumber, name)
    for pattern, native in _DIFFUSERS_NAMES:
        name = re.sub(pattern, native, name)
    return name


def _by_native_names(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that matter for pictures, without prefix, by Wan's names."""
    prefix = _prefix(path, tensors.keys())
    named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if _DIFFUSERS_MARK in named:
        stages = [match for name in named if (match := _DIFFUSERS_STAGE.match(name))]
        blocks = len({stage[3] for stage in stages if stage[2] == "resnets"})
        named = {native_name(name, blocks): tensor for name, tensor in named.items()}
    return {name: tensor for name, tensor in named.items() if not _TEMPORAL.match(name)}


def _prefix(path: Path, names: AbstractSet[str]) -> str:
    for prefix in PREFIXES:
        if not names.isdisjoint({prefix + _NATIVE_MARK, prefix + _DIFFUSERS_MARK}):
            return prefix
    raise wrong_kind(path, WANTED, VAE, names, _GIVE_RELEASE)


def _read_config(path: Path, tensors: Mapping[str, torch.Tensor]) -> VaeConfig:
    """Read the sizes off the encoder's shapes.

    Raises:
        CheckpointError: It does not shrink by 8, or not to 16 channels.
    """
    stages: list[list[int]] = [[]]
    index = 0
    while any(name.startswith(f"encoder.downsamples.{index}.") for name in tensors):
        convolution = tensors.get(f"encoder.downsamples.{index}.residual.2.weight")
        if convolution is None:
            stages.append([])
        else:
            stages[-1].append(convolution.shape[0])
        index += 1
    shrinks_by = 2 ** (len(stages) - 1)
    latents = tensors["conv2.weight"].shape[0] if "conv2.weight" in tensors else LATENT_CHANNELS
    if not all(stages) or shrinks_by != PIXELS_PER_LATENT or latents != LATENT_CHANNELS:
        raise CheckpointError(
            f"{path} is a VAE with {latents} channels that shrinks by {shrinks_by}; "
            f"Anima's has {LATENT_CHANNELS} and shrinks by {PIXELS_PER_LATENT}",
            _GIVE_RELEASE,
        )
    width = tensors[_NATIVE_MARK].numel()
    return VaeConfig(
        width=width,
        multipliers=tuple(widths[-1] // width for widths in stages),
        residual_blocks=len(stages[0]),
    )


def _folded(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of what one frame uses of a tensor; norms in fp32 with their constant."""
    if name.endswith(".gamma"):
        # The norm is over unit length, not unit variance: the missing sqrt(channels) goes in here.
        return tensor.reshape(-1, 1, 1).float() * tensor.numel() ** 0.5
    if name.startswith("conv1."):
        tensor = tensor[:LATENT_CHANNELS]
    return tensor[:, :, -1] if tensor.ndim == 5 else tensor
