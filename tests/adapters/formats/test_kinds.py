"""LoHa, LoKr and DoRA: read, put on, gated and written, against PEFT's own layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model_state_dict
from peft import inject_adapter_in_model as inject

from stages.adapters.attach import attach_adapter, detach, lora_layers
from stages.adapters.dora import DoraPair
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.kohya_file import write_kohya
from stages.adapters.matched_noise import matched_noise
from stages.adapters.module import Adapter
from stages.adapters.norms import block_norms, delta_norm
from stages.adapters.partition import restrict, split_by_block
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError
from stages.families.noise import keyed_normal
from stages.sampling.gates import block_gates

Velocity = Callable[[FluxTransformer2DModel], torch.Tensor]

TARGETS = r".*(?:attn\.to_q|attn\.to_add_out|ff\.net\.2|norm1\.linear|proj_mlp|x_embedder)"
CONFIGS: dict[str, Any] = {
    "LoHa": LoHaConfig(r=3, alpha=3, target_modules=TARGETS, init_weights=False),
    "LoKr, second factor whole": LoKrConfig(
        r=64, alpha=64, target_modules=TARGETS, init_weights=False
    ),
    "LoKr, second factor a product": LoKrConfig(
        r=2, alpha=2, target_modules=TARGETS, init_weights=False
    ),
    "LoKr, both products": LoKrConfig(
        r=1, alpha=1, decompose_both=True, target_modules=TARGETS, init_weights=False
    ),
    "DoRA": LoraConfig(
        r=2, lora_alpha=2, use_dora=True, target_modules=TARGETS, init_lora_weights=False
    ),
}


def copy_of(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """Return an equal model."""
    other = FluxTransformer2DModel.from_config(transformer.config)
    other.load_state_dict(transformer.state_dict())
    return other.eval().requires_grad_(False)


def write_peft(folder: Path, kind: str, transformer: FluxTransformer2DModel) -> tuple[Path, Any]:
    """Return a file of PEFT's own tensors with effect in every one, and the model they are on."""
    theirs = copy_of(transformer)
    torch.manual_seed(1)
    inject(CONFIGS[kind], theirs)
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.0 + 0.2 * keyed_normal(parameter.shape, "magnitude", name)
        elif any(part in name for part in ("hada_", "lokr_", "lora_")):
            parameter.data = 0.3 * keyed_normal(parameter.shape, "part", name)
    tensors = {
        f"transformer.{name}": tensor.contiguous().clone()
        for name, tensor in get_peft_model_state_dict(theirs).items()
    }
    path = folder / "a.safetensors"
    safetensors.torch.save_file(tensors, path)
    return path, theirs.eval()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_model_does_what_it_does_with_pefts_layers(
    kind: str, tiny_flux: FluxTransformer2DModel, velocity: Velocity, tmp_path: Path
) -> None:
    """Same outputs, and none of the base's tensors is touched."""
    path, theirs = write_peft(tmp_path, kind, tiny_flux)
    base = velocity(tiny_flux)
    read = read_adapter(path)
    attach_adapter(tiny_flux, read)
    with torch.no_grad():
        ours, expected = velocity(tiny_flux), velocity(theirs)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    detach(tiny_flux)
    assert torch.equal(velocity(tiny_flux), base)


def changed(
    transformer: FluxTransformer2DModel, adapter: Adapter, strength: float
) -> FluxTransformer2DModel:
    """Return a model whose weights are W + strength Delta W, formed densely."""
    other = copy_of(transformer)
    for module, change in adapter.modules.items():
        weight = other.get_submodule(module).weight
        delta = change.delta(weight) if isinstance(change, DoraPair) else change.delta()
        weight.data += strength * delta
    return other


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_gates_scale_the_whole_change(
    kind: str,
    strength: float,
    tiny_flux: FluxTransformer2DModel,
    velocity: Velocity,
    tmp_path: Path,
) -> None:
    """A gate gives W + a Delta W, at 0 the base bit for bit; gradients reach the gates."""
    path, _ = write_peft(tmp_path, kind, tiny_flux)
    adapter = read_adapter(path)
    base, expected = velocity(tiny_flux), velocity(changed(tiny_flux, adapter, strength))
    attach_adapter(tiny_flux, adapter)
    with block_gates(tiny_flux, adapter.blocks) as gates:
        gates.set(torch.full((2, len(adapter.blocks)), strength))
        found = velocity(tiny_flux)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert strength != 0.0 or torch.equal(found, base)
        values = torch.full((2, len(adapter.blocks)), strength, requires_grad=True)
        gates.set(values)
        velocity(tiny_flux).square().sum().backward()
    assert values.grad is not None
    assert values.grad.ne(0).all()


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_written_is_what_came(
    kind: str, tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """Both formats hold the source's own tensors; the blocks' files together are the source."""
    path, _ = write_peft(tmp_path, kind, tiny_flux)
    source, tensors = read_adapter(path), safetensors.torch.load_file(path)
    for write in (write_adapter, write_kohya):
        write(tmp_path / "b.safetensors", source)
        written = safetensors.torch.load_file(tmp_path / "b.safetensors")
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    found: dict[str, torch.Tensor] = {}
    for part in split_by_block(source).values():
        write_adapter(tmp_path / "c.safetensors", part)
        found |= safetensors.torch.load_file(tmp_path / "c.safetensors")
    assert found.keys() == tensors.keys()
    assert source.parameters == sum(tensor.numel() for tensor in tensors.values())
    block = BlockId.parse("double.1")
    write_adapter(tmp_path / "d.safetensors", restrict(source, [block]))
    assert read_adapter(tmp_path / "d.safetensors").blocks == (block,)


@pytest.mark.parametrize("kind", CONFIGS)
def test_norms_are_those_of_the_dense_change(
    kind: str, tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """|Delta W| of a block, without forming it where that is not needed."""
    path, _ = write_peft(tmp_path, kind, tiny_flux)
    adapter = read_adapter(path)

    def weight_of(module: str) -> torch.Tensor:
        weight: torch.Tensor = tiny_flux.get_submodule(module).weight
        return weight

    norms = block_norms(adapter, weight_of)
    for block, part in split_by_block(adapter).items():
        dense = [
            change.delta(weight_of(module)) if isinstance(change, DoraPair) else change.delta()
            for module, change in part.modules.items()
        ]
        expected = torch.stack([delta.norm() for delta in dense]).norm()
        assert norms[block].delta == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "DoRA"])
def test_noise_of_the_same_norm(
    kind: str, tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """The control has every module's norm, whatever its change is made of."""
    path, _ = write_peft(tmp_path, kind, tiny_flux)
    adapter = read_adapter(path)
    noise = matched_noise(adapter, 3)
    for module, change in adapter.modules.items():
        assert delta_norm(noise.modules[module]) == pytest.approx(delta_norm(change), rel=1e-4)
        assert not torch.allclose(noise.modules[module].delta(), change.delta())


def test_no_noise_for_dora(tiny_flux: FluxTransformer2DModel, tmp_path: Path) -> None:
    """Its norm needs base weights: said, with the way out."""
    path, _ = write_peft(tmp_path, "DoRA", tiny_flux)
    with pytest.raises(AdapterError, match=r"without base weights.*random_seed"):
        matched_noise(read_adapter(path), 3)


def fused(kind: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Return the parts of one layer, with effect."""
    parts = {
        "LoHa": {
            "hada_w1_a": (rows, 2),
            "hada_w1_b": (2, columns),
            "hada_w2_a": (rows, 2),
            "hada_w2_b": (2, columns),
        },
        "LoKr": {"lokr_w1": (4, 4), "lokr_w2": (rows // 4, columns // 4)},
        "DoRA": {
            "lora_down.weight": (2, columns),
            "lora_up.weight": (rows, 2),
            "dora_scale": (rows, 1),
        },
    }[kind]
    return {
        end: 0.3 * keyed_normal(shape, end) + (1.0 if end == "dora_scale" else 0.0)
        for end, shape in parts.items()
    }


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "DoRA"])
@pytest.mark.parametrize(
    ("layer", "modules"),
    [
        ("double_blocks_1_img_attn_qkv", ["to_q", "to_k", "to_v"]),
        ("single_blocks_2_linear1", ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]),
        ("final_layer_adaLN_modulation_1", ["norm_out.linear"]),
    ],
)
def test_fused_layers_are_cut_by_rows(
    kind: str, layer: str, modules: list[str], tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """The rows of the layers' changes are those of the fused one, at a scale of alpha / rank."""
    prefix = {"d": "transformer_blocks.1.attn.", "s": "single_transformer_blocks.2.", "f": ""}
    names = [prefix[layer[0]] + module for module in modules]
    weights = [tiny_flux.get_submodule(name).weight for name in names]
    rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
    parts = fused(kind, rows, columns)
    alpha = {"lora_unet_" + layer + ".alpha": torch.tensor(1.0)}
    file = {f"lora_unet_{layer}.{end}": tensor for end, tensor in parts.items()} | alpha
    safetensors.torch.save_file(file, tmp_path / "a.safetensors")
    adapter = read_adapter(tmp_path / "a.safetensors")
    swap = layer.startswith("final")
    whole = torch.cat([*weights])
    if swap:
        whole = torch.cat([*whole.chunk(2)[::-1]])
    if kind == "LoHa":
        one = parts["hada_w1_a"] @ parts["hada_w1_b"]
        expected = 0.5 * one * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    elif kind == "LoKr":  # both factors whole: alpha does not count
        expected = torch.kron(parts["lokr_w1"], parts["lokr_w2"])
    else:
        product = whole + 0.5 * parts["lora_up.weight"] @ parts["lora_down.weight"]
        gain = parts["dora_scale"] / product.norm(dim=1, keepdim=True)
        expected = gain * product - whole
    if swap:
        expected = torch.cat([*expected.chunk(2)[::-1]])
    for name, weight, rows_of in zip(
        names, weights, expected.split([len(weight) for weight in weights]), strict=True
    ):
        change = adapter.modules[name]
        delta = change.delta(weight) if isinstance(change, DoraPair) else change.delta()
        torch.testing.assert_close(delta, rows_of, rtol=1e-4, atol=1e-5)
    attach_adapter(tiny_flux, adapter)
    write_adapter(tmp_path / "b.safetensors", adapter)
    again = read_adapter(tmp_path / "b.safetensors")
    for name in names:
        one, other = adapter.modules[name], again.modules[name]
        weight = weights[names.index(name)]
        if isinstance(one, DoraPair):
            torch.testing.assert_close(one.delta(weight), other.delta(weight))
        else:
            assert torch.equal(one.delta(), other.delta())


def test_magnitudes_of_columns(
    tiny_flux: FluxTransformer2DModel, velocity: Velocity, tmp_path: Path
) -> None:
    """LyCORIS' and OneTrainer's default: every column of the changed weight has its length."""
    module = "transformer_blocks.1.attn.to_q"
    down, up = keyed_normal((2, 32), "a"), keyed_normal((32, 2), "b")
    magnitude = 1.0 + 0.3 * keyed_normal((1, 32), "m")
    parts = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": magnitude}
    name = "lora_transformer_" + module.replace(".", "_")
    safetensors.torch.save_file(
        {f"{name}.{end}": tensor for end, tensor in parts.items()}, tmp_path / "a.safetensors"
    )
    other = copy_of(tiny_flux)
    weight = other.get_submodule(module).weight
    weight.data += up @ down
    weight.data *= magnitude / weight.norm(dim=0, keepdim=True)
    attach_adapter(tiny_flux, read_adapter(tmp_path / "a.safetensors"))
    torch.testing.assert_close(velocity(tiny_flux), velocity(other), rtol=1e-4, atol=1e-4)


def test_dora_on_quantised_weights_is_refused(
    tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """Its magnitudes are made for the weights that were trained on; the model stays as it was."""
    path, _ = write_peft(tmp_path, "DoRA", tiny_flux)
    layer = tiny_flux.get_submodule("transformer_blocks.1.attn.to_q")
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(AdapterError, match=r"transformer_blocks\.1\.attn\.to_q.*quantised"):
        attach_adapter(tiny_flux, read_adapter(path))
    assert not lora_layers(tiny_flux)


def test_magnitudes_of_a_fused_layers_columns_are_refused(tmp_path: Path) -> None:
    """Their norm is over three layers of ours."""
    name = "lora_unet_double_blocks_1_img_attn_qkv"
    parts = {
        "lora_down.weight": torch.ones(2, 32),
        "lora_up.weight": torch.ones(96, 2),
        "dora_scale": torch.ones(1, 32),
    }
    safetensors.torch.save_file(
        {f"{name}.{end}": tensor for end, tensor in parts.items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(
        AdapterError, match=r"DoRA magnitude.*img_attn\.qkv \[1, 32\].*not fused|fused"
    ):
        read_adapter(tmp_path / "a.safetensors")
