"""One model, several adapters, and gates that a compiler need not see again."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import attach_adapter, lora_layers
from stages.adapters.compatibility import linear_shapes
from stages.adapters.matched_noise import matched_noise
from stages.adapters.module import Adapter
from stages.contracts.blocks import BASE
from stages.contracts.params import ModelParams, SamplingParams
from stages.sampling.adapted_generator import adapted, load_generator
from stages.sampling.compiled_gates import compiled_gates
from stages.sampling.gates import block_gates
from stages.sampling.generation import Job, generate_latents
from stages.sampling.prompts import NamedPrompt
from tests.sampling.planting import (
    plant_adapter,
    same_strength,
    tiny_architecture,
    tiny_velocity,
    write_tiny_folder,
)

BLOCKS = tiny_architecture().blocks
BATCH = 4
MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=2, guidance=2.5, batch=2)
ROWS = ((0.0, 1.0, 0.5, 1.5), (1.0, 1.0, 0.0, 0.25), (0.0, 0.0, 0.0, 0.0))


@pytest.fixture
def adapter(tiny_flux: FluxTransformer2DModel) -> Adapter:
    """An adapter in every block."""
    shapes = linear_shapes(tiny_flux)
    return plant_adapter(tiny_architecture(), shapes, same_strength(BLOCKS, 0.1))


def gate_rows(values: tuple[float, ...]) -> torch.Tensor:
    """Gates [4, blocks]; picture i has its value in the blocks up to i and 1 in the others."""
    rows = torch.ones(BATCH, len(BLOCKS))
    for row, value in enumerate(values):
        rows[row, : row + 1] = value
    return rows


def test_another_variant_is_not_compiled_again(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter
) -> None:
    """The programs of the first variant serve all others, with the numbers of the plain gates."""
    programs = []

    def backend(module: torch.fx.GraphModule, _inputs: object) -> object:
        programs.append(module)
        return module.forward

    attach_adapter(tiny_flux, adapter)
    with block_gates(tiny_flux, BLOCKS) as plain:
        expected = []
        for row in ROWS:
            plain.set(gate_rows(row))
            expected.append(tiny_velocity(tiny_flux))
    torch._dynamo.reset()
    with torch.no_grad(), compiled_gates(tiny_flux, BLOCKS, BATCH, backend) as gates:
        compiled = []
        for row, wanted in zip(ROWS, expected, strict=True):
            gates.set(gate_rows(row))
            torch.testing.assert_close(tiny_velocity(tiny_flux), wanted, rtol=0, atol=0)
            compiled.append(len(programs))
    # The first single block gets its tokens in another layout of memory than the others do.
    assert compiled == [3, 3, 3]
    tiny_velocity(tiny_flux)
    assert len(programs) == 3
    assert not any(block._compiled_call_impl for block in tiny_flux.transformer_blocks)


def test_compiled_gates_match_the_adapter(
    tiny_flux: FluxTransformer2DModel, adapter: Adapter
) -> None:
    """Gates for other blocks, and gates of another shape, are refused."""
    attach_adapter(tiny_flux, adapter)
    with (
        pytest.raises(ValueError, match="not those of the attached adapter"),
        compiled_gates(tiny_flux, (*BLOCKS, BASE), BATCH, "eager"),
    ):
        pass
    with (
        compiled_gates(tiny_flux, BLOCKS, BATCH, "eager") as gates,
        pytest.raises(ValueError, match=r"expected gates \[4, 5\], got \[3, 5\]"),
    ):
        gates.set(torch.ones(3, 5))


def test_one_model_has_one_adapter_after_another(
    tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path, adapter: Adapter
) -> None:
    """The same weights in memory, each adapter's own pictures, and a bare model at the end."""
    write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    prompt = NamedPrompt("develop-0", "tok, a robot")
    generator = load_generator(tmp_path / "base", [prompt], MODEL, SAMPLING)
    weight = generator.transformer.proj_out.weight
    bare = generate_latents(generator, [Job("develop-0", 0)], SAMPLING)
    job = Job("develop-0", 0, (1.0,) * len(BLOCKS))
    drawn = []
    for one in (adapter, matched_noise(adapter, 0), adapter):
        with adapted(generator, one, SAMPLING, compiled=False) as generator_with:
            assert generator_with.transformer.proj_out.weight is weight
            drawn.append(generate_latents(generator_with, [job], SAMPLING))
        assert not lora_layers(generator.transformer)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(generate_latents(generator, [Job("develop-0", 0)], SAMPLING), bare)


@pytest.mark.gpu
def test_compiled_pictures_on_a_gpu(
    tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path, adapter: Adapter
) -> None:
    """In bfloat16 and compiled, a picture is the same in every place of its batch."""
    write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    model = MODEL.model_copy(update={"precision": "bfloat16"})
    generator = load_generator(tmp_path / "base", [NamedPrompt("a", "tok")], model, SAMPLING)
    wanted, other = Job("a", 0, (1.0, 0.0, 0.5, 1.0, 1.0)), Job("a", 1, (0.0,) * 5)
    with adapted(generator, adapter, SAMPLING, compiled=True) as generator_with:
        first = generate_latents(generator_with, [wanted, other], SAMPLING)[0]
        last = generate_latents(generator_with, [other, wanted], SAMPLING)[1]
    assert torch.equal(first, last)
