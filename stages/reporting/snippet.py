"""The lines of Python that draw the slim LoRA's first held-out picture with diffusers alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stages.contracts.params import Params


def diffusers_snippet(weights: Mapping[str, Any], params: Params) -> str:
    """Return a program; its picture is that of stage slim, but for rounding.

    Args:
        weights: the manifest of stage fetch.
        params: all of params.yaml.
    """
    sampling, seed = params.sampling, params.prompts.held_out_seeds[0]
    base = _quoted(weights.get("repository") or weights["folder"])
    revision = f"    revision={_quoted(weights['revision'])},\n" if weights.get("revision") else ""
    bits = params.model.quantisation
    remark = "" if bits == "none" else f"  # the run's transformer is in {bits}: close, not equal"
    # 16 bits of a whole transformer are more than the cards have that a run needs fewer bits for.
    offload = "model_cpu" if bits == "none" else "sequential_cpu"
    return f"""import torch
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained(
    {base},
{revision}    dtype=torch.{params.model.precision},{remark}
)
pipeline.load_lora_weights("data/slim/adapter-slim.safetensors")
if torch.cuda.is_available():
    pipeline.enable_{offload}_offload()
picture = pipeline(
    {_quoted(params.prompts.held_out[0])},
    height={sampling.size_px},
    width={sampling.size_px},
    num_inference_steps={sampling.steps},
    guidance_scale={sampling.guidance},
    max_sequence_length={params.model.text_tokens},
    generator=torch.Generator().manual_seed({seed}),
).images[0]
picture.save("slim.png")  # data/slim/images/held-out-0-{seed}/slim.png
"""


def _quoted(text: str) -> str:
    """Return a text as Python and JSON write it."""
    return json.dumps(text, ensure_ascii=False)
