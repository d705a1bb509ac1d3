"""The base model in other formats and places: the same model, and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import group_offloading

from stages.adapters.attach import add_lora, attach_adapter, extract_adapter, lora_parameters
from stages.contracts.errors import HardwareError, WeightsError
from stages.contracts.params import ModelParams
from stages.families.architecture import Architecture, lora_modules, read_architecture
from stages.families.flow import predict_velocity
from stages.families.loading import checkpoint_blocks, load_transformer
from stages.families.noise import keyed_normal
from stages.families.quantisation import require_hardware, restore_projection
from stages.families.text import TextBatch
from stages.sampling.gates import block_gates
from stages.training.lora_forward import shorten_lora_forward

CPU = torch.device("cpu")
GUIDANCE = 1.0
BLOCK_LINEARS = 494  # FLUX.1's own number: 19 x 14 + 38 x 6


def model_params(**changes: str) -> ModelParams:
    """Return the section `model` for nano, changed."""
    values = {"precision": "float32", "quantisation": "none", "offload": "none"}
    return ModelParams.model_validate({**values, "text_tokens": 8, **changes})


def velocity(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """Return the output [2, 16, 32] on the same inputs each time, as float32 on the CPU."""
    device, dtype = transformer.device, transformer.dtype
    text = TextBatch(keyed_normal([2, 8, 64], "tokens"), keyed_normal([2, 64], "pooled"))
    output = predict_velocity(
        transformer,
        keyed_normal([2, 16, 32], "packed").to(device),
        torch.tensor([0.3, 0.7], device=device),
        text.to(device, dtype),
        GUIDANCE,
    )
    return output.float().cpu()


def adapt(transformer: FluxTransformer2DModel) -> None:
    """Put a LoRA with an effect on every layer of every block."""
    modules = lora_modules(Architecture.from_config(transformer.config), "all")
    add_lora(transformer, modules, rank=4, alpha=4.0, seed=0)
    with torch.no_grad():
        for name, matrix in lora_parameters(transformer).items():
            if "lora_B" in name:
                matrix.copy_(0.02 * keyed_normal(matrix.shape, "up", name))


def gradient(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """Return the gradient of a loss by all of the adapter's numbers."""
    velocity(transformer).square().mean().backward()
    gradients = [matrix.grad for matrix in lora_parameters(transformer).values()]
    return torch.cat([each.float().cpu().flatten() for each in gradients if each is not None])


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |got - expected| / |expected|."""
    return float((got - expected).norm() / expected.norm())


@pytest.fixture
def tiny(tiny_flux: FluxTransformer2DModel, tmp_path: Path) -> Path:
    """A folder with the transformer of 2 double and 3 single blocks."""
    tiny_flux.save_pretrained(tmp_path / "base" / "transformer")
    return tmp_path / "base"


@pytest.fixture(scope="module")
def plain(nano_flux: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity with the adapter, and the gradient, of nano in bfloat16."""
    transformer = load_transformer(nano_flux, model_params(precision="bfloat16"), CPU)
    adapt(transformer)
    return velocity(transformer).detach(), gradient(transformer)


@pytest.mark.parametrize(("quantisation", "error"), [("int8", 0.1), ("fp8", 0.2)])
def test_quantised_base_trains(
    nano_flux: Path, plain: tuple[torch.Tensor, torch.Tensor], quantisation: str, error: float
) -> None:
    """One byte a weight: nearly the same velocity and gradient, also where blocks recompute."""
    params = model_params(precision="bfloat16", quantisation=quantisation)
    transformer = load_transformer(nano_flux, params, CPU)
    adapt(transformer)
    shorten_lora_forward(transformer)
    got = gradient(transformer)
    assert relative(velocity(transformer).detach(), plain[0]) < error
    assert relative(got, plain[1]) < error
    transformer.zero_grad()
    checkpoint_blocks(transformer)
    torch.testing.assert_close(gradient(transformer), got, rtol=0, atol=0)


@pytest.mark.parametrize("quantisation", ["int8", "fp8"])
def test_blocks_are_quantised_and_the_rest_is_not(nano_flux: Path, quantisation: str) -> None:
    """All 494 layers of the blocks, single blocks' proj_out too, and not the final proj_out."""
    from torchao.utils import TorchAOBaseTensor

    params = model_params(precision="bfloat16", quantisation=quantisation)
    transformer = load_transformer(nano_flux, params, CPU)
    names = {
        name
        for name, layer in transformer.named_modules()
        if isinstance(layer, torch.nn.Linear) and isinstance(layer.weight, TorchAOBaseTensor)
    }
    assert len(names) == BLOCK_LINEARS
    assert names == set(lora_modules(read_architecture(nano_flux), "all"))
    assert transformer.dtype == torch.bfloat16


def test_gates_are_exact_on_a_quantised_base(tiny: Path) -> None:
    """The lens holds: gate 0 is the quantised base model and gate 1 the adapter, bit for bit."""
    transformer = load_transformer(
        tiny, model_params(precision="bfloat16", quantisation="int8"), CPU
    )
    with torch.no_grad():
        base = velocity(transformer)
        adapt(transformer)
        adapter = extract_adapter(transformer, {})
        transformer.unload_lora()
        attach_adapter(transformer, adapter)
        full = velocity(transformer)
        with block_gates(transformer, adapter.blocks) as gates:
            gates.set(torch.zeros(2, len(adapter.blocks)))
            assert torch.equal(velocity(transformer), base)
            gates.set(torch.ones(2, len(adapter.blocks)))
            assert torch.equal(velocity(transformer), full)
    assert not torch.equal(base, full)


def test_what_is_missing_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Package and GPU in one message, with what to do."""
    monkeypatch.setattr("stages.runtime.machine.find_spec", lambda _: None)
    with pytest.raises(HardwareError, match=r"2 problems") as caught:
        load_transformer(
            Path("nowhere"), model_params(precision="bfloat16", quantisation="nf4"), CPU
        )
    assert "needs the package bitsandbytes" in str(caught.value)
    assert "pip install 'blocklens[gpu]'" in str(caught.value)
    assert "needs a CUDA device, this run's is cpu" in str(caught.value)
    with pytest.raises(HardwareError, match=r"model.offload: group: needs a CUDA device"):
        require_hardware(model_params(offload="group"), CPU)
    with pytest.raises(HardwareError, match="needs the package torchao"):
        require_hardware(model_params(precision="bfloat16", quantisation="fp8"), CPU)


def test_final_projection_comes_from_the_file(nano_flux: Path, tmp_path: Path) -> None:
    """nf4 quantises it against our will: its own numbers are put back."""
    params = model_params(precision="bfloat16")
    transformer = load_transformer(nano_flux, params, CPU)
    before = transformer.proj_out.weight.clone(), transformer.proj_out.bias.clone()
    with torch.no_grad():
        transformer.proj_out.weight.zero_()
    restore_projection(transformer, nano_flux)
    assert torch.equal(transformer.proj_out.weight, before[0])
    assert torch.equal(transformer.proj_out.bias, before[1])
    with pytest.raises(WeightsError, match=r"no tensor proj_out\.weight"):
        restore_projection(transformer, tmp_path)


class Fetched:
    """What the stand-in for a GPU holds: groups now, the most at once, and all weights ever."""

    def __init__(self) -> None:
        self.now: set[int] = set()
        self.most = 0
        self.storages: set[int] = set()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    """Let a CPU stand for a GPU: a weight that is offloaded reads as NaN until it is fetched."""
    kept: dict[torch.nn.Parameter, torch.Tensor] = {}
    state = Fetched()

    def matrices(group: group_offloading.ModuleGroup) -> list[torch.nn.Parameter]:
        return [each for module in group.modules for each in module.parameters()]

    def offload(group: group_offloading.ModuleGroup) -> None:
        state.now.discard(id(group))
        for matrix in matrices(group):
            if matrix not in kept:
                kept[matrix] = matrix.data
            matrix.data = torch.full_like(matrix.data, float("nan"))

    def fetch(group: group_offloading.ModuleGroup) -> None:
        state.now.add(id(group))
        state.most = max(state.most, len(state.now))
        for matrix in matrices(group):
            matrix.data = kept[matrix].clone()
            state.storages.add(matrix.untyped_storage().data_ptr())

    monkeypatch.setattr(group_offloading.ModuleGroup, "offload_", offload)
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", fetch)
    return state


@pytest.mark.parametrize("recomputing", [True, False])
def test_offload_gives_the_same_gradients(tiny: Path, fetched: Fetched, recomputing: bool) -> None:
    """The backward pass reads fetched weights alone, and none stays behind after it.

    Without gradient checkpointing, which params therefore ask for, the graph would keep every
    weight that was fetched, and offloading would save nothing.
    """
    expected = load_transformer(tiny, model_params(), CPU)
    adapt(expected)
    # The hooks that load_transformer sets where there is a GPU.
    transformer = load_transformer(tiny, model_params(), CPU)
    transformer.enable_group_offload(CPU, offload_type="leaf_level")
    adapt(transformer)
    shorten_lora_forward(transformer)
    if recomputing:
        checkpoint_blocks(transformer)
    held: set[int] = set()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = velocity(transformer).square().mean()
    kept = len(held & fetched.storages)
    loss.backward()
    got = torch.cat([p.grad.flatten() for p in lora_parameters(transformer).values()])
    assert torch.isfinite(got).all()
    assert relative(got, gradient(expected)) < 1e-5
    assert (len(fetched.now), fetched.most) == (0, 1)
    blocks = len(lora_modules(Architecture.from_config(transformer.config), "all"))
    assert kept < blocks / 4 if recomputing else kept > blocks / 2


@pytest.mark.gpu
@pytest.mark.parametrize(("quantisation", "error"), [("int8", 0.1), ("fp8", 0.2), ("nf4", 0.6)])
def test_quantised_base_trains_on_a_gpu(nano_flux: Path, quantisation: str, error: float) -> None:
    """The same on CUDA, nf4 too, whose final projection is not quantised."""
    device = torch.device("cuda")
    plain = load_transformer(nano_flux, model_params(precision="bfloat16"), device)
    params = model_params(precision="bfloat16", quantisation=quantisation)
    transformer = load_transformer(nano_flux, params, device)
    assert type(transformer.proj_out.weight) is torch.nn.Parameter
    for each in (plain, transformer):
        adapt(each)
        shorten_lora_forward(each)
        checkpoint_blocks(each)
    assert relative(gradient(transformer), gradient(plain)) < error


@pytest.mark.gpu
def test_offload_gives_the_same_gradients_on_a_gpu(nano_flux: Path) -> None:
    """Weights in main memory, and only the adapter and one layer at a time on the GPU."""
    device = torch.device("cuda")
    plain = load_transformer(nano_flux, model_params(), device)
    transformer = load_transformer(nano_flux, model_params(offload="group"), device)
    assert transformer.device.type == "cuda"
    assert transformer.transformer_blocks[0].attn.to_q.weight.device.type == "cpu"
    for each in (plain, transformer):
        adapt(each)
        shorten_lora_forward(each)
        checkpoint_blocks(each)
    assert relative(gradient(transformer), gradient(plain)) < 1e-5
    assert {matrix.device.type for matrix in lora_parameters(transformer).values()} == {"cuda"}
    assert transformer.transformer_blocks[0].attn.to_q.weight.device.type == "cpu"
