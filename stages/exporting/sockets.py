"""The sockets of the ComfyUI nodes that our workflows are made of.

Read from Comfy-Org/ComfyUI at a125cd84b054a57729b5eecab930ca9408719832 (0.3.64): nodes.py and
comfy_extras/nodes_{custom_sampler,flux,model_advanced,sd3}.py. tests/exporting/comfyui_nodes.json
has their types and ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NOTE: Final = "Note"
"""A text on the page; no server knows it."""

CONTROLLED: Final = frozenset({("RandomNoise", "noise_seed")})
"""Widgets with a second one beside them that says what becomes of the value after a picture."""


@dataclass(frozen=True)
class Sockets:
    """Inputs that take links and outputs, as (name, type), and widgets, all in a node's order."""

    inputs: tuple[tuple[str, str], ...]
    widgets: tuple[str, ...]
    outputs: tuple[tuple[str, str], ...]


def _outputs(*types: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in types)


SOCKETS: Final = {
    "UNETLoader": Sockets((), ("unet_name", "weight_dtype"), _outputs("MODEL")),
    "DualCLIPLoader": Sockets((), ("clip_name1", "clip_name2", "type", "device"), _outputs("CLIP")),
    "VAELoader": Sockets((), ("vae_name",), _outputs("VAE")),
    "LoraLoaderModelOnly": Sockets(
        (("model", "MODEL"),), ("lora_name", "strength_model"), _outputs("MODEL")
    ),
    "CLIPTextEncode": Sockets((("clip", "CLIP"),), ("text",), _outputs("CONDITIONING")),
    "FluxGuidance": Sockets(
        (("conditioning", "CONDITIONING"),), ("guidance",), _outputs("CONDITIONING")
    ),
    "ModelSamplingFlux": Sockets(
        (("model", "MODEL"),), ("max_shift", "base_shift", "width", "height"), _outputs("MODEL")
    ),
    "EmptySD3LatentImage": Sockets((), ("width", "height", "batch_size"), _outputs("LATENT")),
    "RandomNoise": Sockets((), ("noise_seed",), _outputs("NOISE")),
    "KSamplerSelect": Sockets((), ("sampler_name",), _outputs("SAMPLER")),
    "BasicScheduler": Sockets(
        (("model", "MODEL"),), ("scheduler", "steps", "denoise"), _outputs("SIGMAS")
    ),
    "BasicGuider": Sockets(
        (("model", "MODEL"), ("conditioning", "CONDITIONING")), (), _outputs("GUIDER")
    ),
    "SamplerCustomAdvanced": Sockets(
        (
            ("noise", "NOISE"),
            ("guider", "GUIDER"),
            ("sampler", "SAMPLER"),
            ("sigmas", "SIGMAS"),
            ("latent_image", "LATENT"),
        ),
        (),
        (("output", "LATENT"), ("denoised_output", "LATENT")),
    ),
    "VAEDecode": Sockets((("samples", "LATENT"), ("vae", "VAE")), (), _outputs("IMAGE")),
    "SaveImage": Sockets((("images", "IMAGE"),), ("filename_prefix",), ()),
    NOTE: Sockets((), ("text",), ()),
}
