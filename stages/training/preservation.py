"""What the model made of captions without the trigger, kept as it was.

The frozen model is the teacher: on the same noised picture with the caption without the trigger,
its velocity and that of the model with the adapter shall be equal. It is ai-toolkit's "differential
output preservation" (extensions_built_in/sd_trainer/SDTrainer.py), and kin to learning without
forgetting (Z. Li and D. Hoiem, arXiv 1606.09282).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import lora_layers
from stages.families.flow import predict_velocity
from stages.families.text import batch_text
from stages.training.batches import Draw
from stages.training.objective import Batch


def preservation_losses(
    transformer: FluxTransformer2DModel,
    batch: Batch,
    draws: Sequence[Draw],
    guidance: float | None,
) -> torch.Tensor:
    """Return the mean squared difference [K], float32, of the velocities with and without adapter.

    Args:
        transformer: with a trainable adapter.
        batch: what `assemble` made of `draws`.
        draws: of which the K with a `plain_text` are looked at.
        guidance: value of the guidance embedding, or None to leave it out.
    """
    kept = [place for place, draw in enumerate(draws) if draw.plain_text is not None]
    if not kept:
        return torch.zeros(0, device=batch.noised.device)
    texts = [draw.plain_text for draw in draws if draw.plain_text is not None]
    text = batch_text(texts).to(batch.noised.device, transformer.dtype)
    noised, sigmas = batch.noised[kept], batch.sigmas[kept]
    with torch.no_grad(), without_adapter(transformer):
        teacher = predict_velocity(transformer, noised, sigmas, text, guidance, batch.grid)
    velocity = predict_velocity(transformer, noised, sigmas, text, guidance, batch.grid)
    return (velocity.float() - teacher.float()).square().mean(dim=(1, 2))


@contextmanager
def without_adapter(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Let the transformer run as the base model, whatever forward its LoRA layers have."""
    layers = list(lora_layers(transformer).values())
    forwards = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = layer.get_base_layer().__call__
    try:
        yield
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
