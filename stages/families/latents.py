"""Pictures as latents, latents as tokens, and back.

C = latent channels, h = w = size_px / 8, N = h * w / 4 tokens of 4C numbers. "Normalised" latents
are (z - shift_factor) * scaling_factor with the VAE's own factors. Layout as in diffusers'
FluxPipeline (_pack_latents, _unpack_latents).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from stages.families.architecture import Architecture

VAE_REDUCTION = 8
"""Picture pixels per latent pixel, on each side; the same in every FLUX autoencoder."""

TOKEN_PX = 2 * VAE_REDUCTION
"""Picture pixels per token, on each side: a token is a 2x2 patch of latent pixels."""

_LEFT_ALONE = 0.1


def latent_shape(architecture: Architecture, size_px: int) -> tuple[int, int, int]:
    """Return (C, h, w) of the latents of a square picture with sides of `size_px` pixels."""
    side = size_px // VAE_REDUCTION
    return (architecture.latent_channels, side, side)


def training_size(width_px: int, height_px: int, size_px: int) -> tuple[int, int]:
    """Return the width and height at which a prepared picture is encoded.

    A square becomes one of `size_px`. Another shape keeps its proportions, to the 16 pixels of one
    token, and gets about size_px^2 pixels; one that has them already, to a tenth of the side, is
    left as it is: scaling it would cost sharpness for nothing.
    """
    if width_px == height_px:
        return (size_px, size_px)
    factor = size_px / (width_px * height_px) ** 0.5
    whole = width_px % TOKEN_PX == 0 and height_px % TOKEN_PX == 0
    if whole and abs(factor - 1) <= _LEFT_ALONE:
        return (width_px, height_px)
    return (_whole_tokens(width_px * factor), _whole_tokens(height_px * factor))


def _whole_tokens(side_px: float) -> int:
    return max(1, round(side_px / TOKEN_PX)) * TOKEN_PX


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Return tokens [B, N, 4C] of latents [B, C, h, w]: each token is a 2x2 patch."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(packed: torch.Tensor, size_px: int) -> torch.Tensor:
    """Return latents [B, C, h, w] of tokens [B, N, 4C]; the inverse of `pack`."""
    batch, _, numbers = packed.shape
    side = size_px // VAE_REDUCTION
    patches = packed.reshape(batch, side // 2, side // 2, numbers // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, numbers // 4, side, side)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation [B, C, h, w] of the normalised latents' posterior.

    Args:
        vae: the base model's autoencoder.
        pixels: RGB pictures [B, 3, H, W] in [-1, 1].
    """
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    return (posterior.mean - shift) * scale, posterior.std * scale


@torch.no_grad()
def decode_pictures(
    vae: AutoencoderKL, packed: torch.Tensor, size_px: int
) -> npt.NDArray[np.uint8]:
    """Return RGB pictures [B, H, W, 3] in 0-255 of tokens [B, N, 4C].

    Rounding and clipping are those of FluxPipeline's own picture output.
    """
    latents = unpack(packed, size_px).to(vae.device, vae.dtype)
    latents = latents / vae.config.scaling_factor + vae.config.shift_factor
    pixels = vae.decode(latents, return_dict=False)[0]
    unit = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    pictures: npt.NDArray[np.uint8] = (unit * 255).round().astype(np.uint8)
    return pictures
