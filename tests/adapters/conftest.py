"""Adapters for the tiny FLUX, and the reference loader that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from stages.adapters.compatibility import linear_shapes
from stages.adapters.module import Adapter, LoraPair
from stages.families.architecture import block_of
from stages.families.noise import keyed_normal

CASES = {
    "full": lambda _: True,
    "without block 0": lambda block: block.index != 0 or block.stack == "base",
    "two blocks": lambda block: str(block) in {"double.1", "single.1"},
    "base only": lambda block: block.stack == "base",
}
"""Which blocks an adapter has. Readers in the wild break on all but the first."""

METADATA = {"trained_by": "a test", "ünïcode": "é"}


def plant(shapes: dict[str, tuple[int, int]], modules: Iterable[str], scaled: bool) -> Adapter:
    """Return an adapter with effect in every module; ranks differ, and with `scaled` alphas too."""
    pairs = {}
    for number, module in enumerate(sorted(modules)):
        rows, columns = shapes[module]
        rank = 2 if number % 3 == 0 else 4
        alpha = (1.0, 3.0, 4.0)[number % 3] if scaled else float(rank)
        down = keyed_normal((rank, columns), "down", module) * 0.3
        up = keyed_normal((rows, rank), "up", module) * 0.3
        pairs[module] = LoraPair(down, up, alpha)
    return Adapter(pairs, METADATA)


@pytest.fixture
def shapes(tiny_flux: FluxTransformer2DModel) -> dict[str, tuple[int, int]]:
    """The Linear layers of the tiny FLUX."""
    return linear_shapes(tiny_flux)


@pytest.fixture(params=CASES)
def modules(request: pytest.FixtureRequest, shapes: dict[str, tuple[int, int]]) -> list[str]:
    """Modules of one of the four cases."""
    return [module for module in shapes if CASES[request.param](block_of(module))]


@pytest.fixture
def adapter(shapes: dict[str, tuple[int, int]], modules: list[str]) -> Adapter:
    """An adapter in one of the four cases, with alpha = rank everywhere."""
    return plant(shapes, modules, scaled=False)


@pytest.fixture
def scaled_adapter(shapes: dict[str, tuple[int, int]], modules: list[str]) -> Adapter:
    """An adapter in one of the four cases, with alphas that differ from the ranks."""
    return plant(shapes, modules, scaled=True)


@pytest.fixture
def full_adapter(shapes: dict[str, tuple[int, int]]) -> Adapter:
    """An adapter on every Linear layer."""
    return plant(shapes, shapes, scaled=False)


@pytest.fixture
def velocity() -> Callable[[FluxTransformer2DModel], torch.Tensor]:
    """A function from a transformer to its output on a fixed input [2, 4, 32]."""

    def predict(transformer: FluxTransformer2DModel) -> torch.Tensor:
        dtype = transformer.dtype
        output: torch.Tensor = transformer(
            hidden_states=keyed_normal((2, 4, 32), "latents").to(dtype),
            encoder_hidden_states=keyed_normal((2, 5, 64), "tokens").to(dtype),
            pooled_projections=keyed_normal((2, 64), "pooled").to(dtype),
            timestep=torch.tensor([0.3, 0.8], dtype=dtype),
            guidance=torch.tensor([1.0, 1.0]),
            txt_ids=torch.zeros(5, 3, dtype=dtype),
            img_ids=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]).to(dtype),
            return_dict=False,
        )[0]
        return output

    return predict


@pytest.fixture
def tiny_pipeline(tiny_flux: FluxTransformer2DModel) -> FluxPipeline:
    """A FLUX pipeline around the tiny transformer, with nothing else in it."""
    absent = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = FlowMatchEulerDiscreteScheduler()
    return FluxPipeline(scheduler=scheduler, transformer=tiny_flux, **dict.fromkeys(absent))


def assert_equal(one: Adapter, other: Adapter) -> None:
    """Fail unless the two adapters have the same modules, bits, alphas and metadata."""
    assert one.modules.keys() == other.modules.keys()
    for module, pair in one.modules.items():
        assert torch.equal(pair.down, other.modules[module].down)
        assert torch.equal(pair.up, other.modules[module].up)
        assert pair.alpha == other.modules[module].alpha
    assert dict(one.metadata) == dict(other.metadata)


@pytest.fixture
def same() -> Callable[[Adapter, Adapter], None]:
    """The assertion that two adapters are equal, bit for bit."""
    return assert_equal
