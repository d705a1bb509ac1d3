"""LoRAs of known structure for a real network: every number of them follows from a measurement.

Three parts are enough. A block *writes* when its LoRA reads something that is nearly constant and
turns it into one direction; it *whispers* when that direction changes the picture as little as
possible and is still told apart by a later block; that block *listens* when its LoRA reads 1 where
the whisper is and 0 where it is not. What a block then does to the velocity is fitted: the response
to each number of B is measured by finite differences, and B is the least-squares answer to the
change that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.linalg
import torch
from torch import nn

from stages.adapters.pair import LoraPair
from stages.contracts.params import SamplingParams
from stages.families.architecture import block_of
from stages.families.flow import predict_velocity
from stages.families.latents import decode_pictures, encode_pictures, pack
from stages.families.noise import keyed_normal
from stages.families.text import TextBatch, batch_text
from stages.sampling.generation import Generator, Job, generate_latents

Colour = tuple[float, float, float]

STEP: Final = 0.02
"""Of a finite difference, over the root mean square of what the layer puts out."""
RIDGE: Final = 1e-4
"""Of the least squares, over the mean square of the columns."""
SEEN_RIDGE: Final = 0.01
"""Of what a whisper does to the velocity, over its mean: a whisper that is nearly unseen is large,
and the response to it no longer linear."""


@dataclass(frozen=True)
class Seed:
    """A LoRA of rank 1 on one Linear layer: `down` [in] is its A, `up` [out] its B."""

    module: str
    down: torch.Tensor
    up: torch.Tensor

    def pair(self) -> LoraPair:
        """Return it as a file has it."""
        return LoraPair(self.down[None].float(), self.up[:, None].float(), 1.0)


@dataclass(frozen=True)
class Ground:
    """A bare model and the states at which LoRAs are fitted.

    `packed` [S, N, 4C] are noised pictures of the model's own, `sigmas` [S] their noise levels, and
    `clean` [S, N, 4C] the pictures' tokens.
    """

    generator: Generator
    sampling: SamplingParams
    packed: torch.Tensor
    sigmas: torch.Tensor
    text: TextBatch
    clean: torch.Tensor

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self.packed)

    @torch.no_grad()
    def velocity(self, seeds: Sequence[Seed] = ()) -> torch.Tensor:
        """Return the velocities [S, N, 4C] with `seeds` in the model."""
        transformer, guidance = self.generator.transformer, self.sampling.guidance
        with _sown(transformer, seeds):
            return predict_velocity(transformer, self.packed, self.sigmas, self.text, guidance)

    def inputs(self, module: str, seeds: Sequence[Seed] = ()) -> torch.Tensor:
        """Return what the layer `module` reads [S, tokens, in], with `seeds` in the model."""
        with _overheard(self.generator.transformer, module) as heard:
            self.velocity(seeds)
        return heard[0]


def prepare_ground(
    generator: Generator,
    pictures: Sequence[tuple[str, int]],
    sigmas: Sequence[float],
    sampling: SamplingParams,
) -> Ground:
    """Return the states: every picture (prompt, seed) of the bare model at every noise level."""
    jobs = [Job(prompt, seed) for prompt, seed in pictures]
    unpadded = sampling.model_copy(update={"batch": len(jobs)})
    clean = generate_latents(generator, jobs, unpadded).float()
    packed = [
        (1.0 - sigma) * one
        + sigma * keyed_normal(tuple(one.shape), "plant", prompt, seed, f"{sigma:g}")
        for (prompt, seed), one in zip(pictures, clean, strict=True)
        for sigma in sigmas
    ]
    return Ground(
        generator,
        sampling,
        torch.stack(packed),
        torch.tensor(list(sigmas) * len(pictures)),
        batch_text([generator.texts[prompt] for prompt, _ in pictures for _ in sigmas]),
        clean.repeat_interleave(len(sigmas), dim=0),
    )


def recolouring(ground: Ground, change: Colour) -> torch.Tensor:
    """Return the change of the velocity [S, N, 4C] that adds `change` to R, G, B of the pictures.

    A velocity is noise minus picture, so it is minus the change of the picture's tokens.
    """
    vae = ground.generator.vae
    pixels = torch.from_numpy(decode_pictures(vae, ground.clean, ground.sampling.size_px)).float()
    before, after = (
        encode_pictures(vae, (each.clamp(0, 255) / 127.5 - 1.0).permute(0, 3, 1, 2))[0]
        for each in (pixels, pixels + torch.tensor(change))
    )
    return pack(before) - pack(after)


def constant_reader(inputs: torch.Tensor, apart: int) -> torch.Tensor:
    """Return the A [in] that reads as nearly 1 as can be from all `inputs` [..., in].

    It leaves the first `apart` columns alone: those that another LoRA of the block changes.
    """
    rows = inputs.flatten(end_dim=-2)[:, apart:]
    return torch.cat([torch.zeros(apart), _fit(rows, torch.ones(len(rows)))])


def difference_reader(without: torch.Tensor, with_it: torch.Tensor) -> torch.Tensor:
    """Return the A [in] that reads 0 from inputs `without` a whisper and 1 from those `with_it`."""
    rows = torch.cat([each.flatten(end_dim=-2) for each in (without, with_it)])
    wanted = torch.cat([torch.zeros(len(rows) // 2), torch.ones(len(rows) // 2)])
    return _fit(rows, wanted)


@dataclass(frozen=True)
class Response:
    """What each number of a layer's B does, per unit.

    `velocity` [S, N, 4C, out]; `heard` [S, tokens, in of the listener, out].
    """

    velocity: torch.Tensor
    heard: torch.Tensor


@torch.no_grad()
def measure_response(
    ground: Ground, module: str, down: torch.Tensor, listener: str, seeds: Sequence[Seed] = ()
) -> Response:
    """Return the response to B of `module`, whose A is `down`, by finite differences.

    Args:
        ground: the states.
        module: the layer that gets the LoRA, in a single block.
        down: its A [in].
        listener: a layer of the same block or a later one, whose inputs are watched.
        seeds: what is in the model already.
    """
    transformer = ground.generator.transformer
    layer = transformer.get_submodule(module)
    with _overheard(transformer, module) as own:
        rest = _rest_of(ground, block_of(module).index, seeds)
    step = STEP * float(layer(own[0]).square().mean().sqrt())
    ups = step * torch.eye(layer.out_features)
    with _overheard(transformer, listener) as heard:
        base = rest(seeds)
        moved = [(rest([*seeds, Seed(module, down, up)]) - base) / step for up in ups]
    shifts = [(each - heard[0]) / step for each in heard[1:]]
    return Response(torch.stack(moved, dim=-1), torch.stack(shifts, dim=-1))


def _rest_of(
    ground: Ground, first: int, seeds: Sequence[Seed]
) -> Callable[[Sequence[Seed]], torch.Tensor]:
    """Return the model from single block `first` on, as a function of the seeds that lie there.

    What comes before is run once, with `seeds`.
    """
    transformer = ground.generator.transformer
    blocks = transformer.single_transformer_blocks[first:]
    kept: list[dict[str, Any]] = []

    def keep(_block: object, _inputs: object, named: dict[str, Any]) -> None:
        kept.append(dict(named))

    hook = blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        ground.velocity(seeds)
    finally:
        hook.remove()
    (start,) = kept

    def run(there: Sequence[Seed]) -> torch.Tensor:
        named = dict(start)
        with _sown(transformer, there):
            for block in blocks:
                text, picture = block(**named)
                named |= {"encoder_hidden_states": text, "hidden_states": picture}
            velocity: torch.Tensor = transformer.proj_out(
                transformer.norm_out(named["hidden_states"], named["temb"])
            )
        return velocity

    return run


def fit_up(response: Response, wanted: torch.Tensor) -> torch.Tensor:
    """Return the B [out] whose effect is nearest to the change `wanted` [S, N, 4C]."""
    return _fit(response.velocity.flatten(end_dim=-2), wanted.flatten())


def whisper(response: Response, listened: torch.Tensor, loudness: float) -> torch.Tensor:
    """Return the B [out] that is heard best for what it does to the velocity.

    Args:
        response: of the layer that whispers, with the listener's.
        listened: what the listener reads without it [S, tokens, in].
        loudness: the ratio of what is heard to what is there anyway, in standard deviations.
    """
    rows = listened.flatten(end_dim=-2).double().numpy()
    natural = rows.T @ rows / len(rows)
    natural += RIDGE * np.trace(natural) / len(natural) * np.eye(len(natural))
    shift = response.heard.double().mean(dim=(0, 1)).numpy()  # [in, out]
    heard = shift.T @ np.linalg.solve(natural, shift)
    effect = response.velocity.double().flatten(end_dim=-2)
    seen = (effect.T @ effect / len(effect)).numpy()
    seen += SEEN_RIDGE * np.trace(seen) / len(seen) * np.eye(len(seen))
    _, vectors = scipy.linalg.eigh(heard, seen)
    best = vectors[:, -1] * np.sign(vectors[:, -1].sum())
    return torch.from_numpy(best * loudness / np.sqrt(best @ heard @ best)).float()


def _fit(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the least-squares answer [columns] to rows @ answer = wanted [rows]."""
    left, right = rows.double(), wanted.double()
    products = left.T @ left
    ridge = RIDGE * products.diagonal().mean()
    damped = products + ridge * torch.eye(len(products), dtype=torch.float64)
    answer: torch.Tensor = torch.linalg.solve(damped, left.T @ right)
    return answer.float()


@contextmanager
def _sown(transformer: nn.Module, seeds: Sequence[Seed]) -> Iterator[None]:
    """Let the layers of `seeds` add their rank-1 part."""

    def adds(
        seed: Seed,
    ) -> Callable[[object, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def add(_: object, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + (inputs[0] @ seed.down)[..., None] * seed.up

        return add

    hooks = [transformer.get_submodule(s.module).register_forward_hook(adds(s)) for s in seeds]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _overheard(transformer: nn.Module, module: str) -> Iterator[list[torch.Tensor]]:
    """Yield a list that grows by what the layer `module` reads in each pass."""
    heard: list[torch.Tensor] = []
    layer = transformer.get_submodule(module)
    hook = layer.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].detach()))
    try:
        yield heard
    finally:
        hook.remove()
