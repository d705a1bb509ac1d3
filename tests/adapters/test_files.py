"""Reading and writing LoRA files."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from stages.adapters.attach import ADAPTER_NAME, attach_adapter, detach
from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import DERIVED_METADATA, read_adapter, write_adapter
from stages.adapters.module import Adapter, LoraPair
from stages.adapters.partition import join, split_by_block
from stages.contracts.errors import AdapterError
from stages.families.noise import keyed_normal

Same = Callable[[Adapter, Adapter], None]
Velocity = Callable[[FluxTransformer2DModel], torch.Tensor]

NO_TEXT_LORA = "No LoRA keys associated to"
"""diffusers 0.42 says this of the text encoder for every LoRA of the transformer alone."""


def save(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    """Write a file of someone else's and return its path."""
    safetensors.torch.save_file(tensors, path, metadata)
    return path


def tensors_of(rank: int = 2, module: str = "transformer.proj_out") -> dict[str, torch.Tensor]:
    """Return A and B of one module."""
    return {
        f"{module}.lora_A.weight": torch.ones(rank, 4),
        f"{module}.lora_B.weight": torch.ones(5, rank),
    }


def refusal(path: Path) -> str:
    """Return the message with which a file is refused."""
    with pytest.raises(AdapterError) as caught:
        read_adapter(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_back(tmp_path: Path, adapter: Adapter, same: Same) -> None:
    """With alpha = rank not one bit changes, metadata included."""
    write_adapter(tmp_path / "a.safetensors", adapter)
    same(read_adapter(tmp_path / "a.safetensors"), adapter)


def test_the_scale_is_folded_into_b(tmp_path: Path, scaled_adapter: Adapter) -> None:
    """A written file has no alpha and the same Delta W; A is untouched."""
    write_adapter(tmp_path / "a.safetensors", scaled_adapter)
    assert not [
        name
        for name in safetensors.torch.load_file(tmp_path / "a.safetensors")
        if not name.endswith(("lora_A.weight", "lora_B.weight"))
    ]
    read = read_adapter(tmp_path / "a.safetensors")
    assert any(pair.scale != 1.0 for pair in scaled_adapter.modules.values())
    for module, pair in scaled_adapter.modules.items():
        assert read.modules[module].scale == 1.0
        assert torch.equal(read.modules[module].down, pair.down)
        torch.testing.assert_close(read.modules[module].delta(), pair.delta())


def test_equal_adapters_are_equal_bytes(tmp_path: Path, full_adapter: Adapter) -> None:
    """Order of modules, layout in memory and order of metadata leave no trace in the file."""
    other = Adapter(
        {
            module: LoraPair(pair.down.T.contiguous().T, pair.up.clone(), pair.alpha)
            for module, pair in reversed(full_adapter.modules.items())
        },
        dict(reversed(full_adapter.metadata.items())),
    )
    write_adapter(tmp_path / "a", full_adapter)
    write_adapter(tmp_path / "b", other)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_files_of_all_blocks_are_the_source(
    tmp_path: Path, adapter: Adapter, same: Same
) -> None:
    """Split, written, read and joined again: the source, bit for bit."""
    parts = []
    for block, part in split_by_block(adapter).items():
        write_adapter(tmp_path / f"{block}.safetensors", part)
        parts.append(read_adapter(tmp_path / f"{block}.safetensors"))
    same(join(parts), adapter)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_files_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    """Both formats fit into float32 without rounding."""
    stored = {
        name: (value * 0.1).to(dtype) for name, value in tensors_of(module="proj_out").items()
    }
    pair = read_adapter(save(tmp_path / "a.safetensors", stored)).modules["proj_out"]
    assert pair.up.dtype == torch.float32
    assert torch.equal(pair.up, stored["proj_out.lora_B.weight"].float())


def test_alpha_tensors_and_the_header_are_understood(tmp_path: Path) -> None:
    """The two ways of stating a scale, each in a file of its own."""
    alpha = {"transformer.proj_out.alpha": torch.tensor(1.0)}
    config = json.dumps({"transformer.r": 2, "transformer.lora_alpha": 1})
    by_tensor = read_adapter(save(tmp_path / "a.safetensors", tensors_of() | alpha))
    by_header = read_adapter(
        save(tmp_path / "b.safetensors", tensors_of(), lora_adapter_metadata=config, note="kept")
    )
    assert by_tensor.modules["proj_out"].alpha == by_header.modules["proj_out"].alpha == 1.0
    assert by_header.metadata == {"note": "kept"}


def test_fields_that_would_lie_in_another_file_are_dropped(tmp_path: Path) -> None:
    """Hashes and alphas of the source say nothing true about a file that we write."""
    lying = dict.fromkeys(DERIVED_METADATA - {"lora_adapter_metadata"}, "x")
    path = save(tmp_path / "a.safetensors", tensors_of(), ss_output_name="tok", **lying)
    assert read_adapter(path).metadata == {"ss_output_name": "tok"}


def test_kohyas_fields_are_those_of_the_file(tmp_path: Path) -> None:
    """The rank and the folded alpha of what is written, whatever the source said; or Dynamic."""
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q"]

    def fields(*ranks: int) -> tuple[str, str]:
        pairs = {
            name: LoraPair(torch.ones(rank, 3), torch.ones(4, rank), 1.0)
            for name, rank in zip(names, ranks, strict=True)
        }
        lying = {"ss_network_dim": "128", "ss_network_alpha": "1"}
        write_adapter(tmp_path / "a.safetensors", Adapter(pairs, lying))
        with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
            header = file.metadata()
        return header["ss_network_dim"], header["ss_network_alpha"]

    assert fields(4, 4) == ("4", "4.0")
    assert fields(4, 16) == ("Dynamic", "Dynamic")
    assert "ss_network_dim" not in read_adapter(tmp_path / "a.safetensors").metadata


def test_the_hash_is_that_of_the_data(tmp_path: Path) -> None:
    """ModelSpec: SHA-256 of what follows the header; a source's own hash is not carried over."""
    pair = LoraPair(torch.ones(2, 3), torch.ones(4, 2), 1.0)
    lying = {"modelspec.hash_sha256": "0xdead"}
    path = tmp_path / "a.safetensors"
    write_adapter(path, Adapter({"transformer_blocks.0.attn.to_q": pair}, lying))
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with safe_open(path, framework="pt") as file:
        stated = file.metadata()["modelspec.hash_sha256"]
    assert stated == f"0x{hashlib.sha256(data[start:]).hexdigest()}"
    assert "modelspec.hash_sha256" not in read_adapter(path).metadata


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    """Foreign keys, missing partners, ranks, NaN, formats and alphas: one run shows them all."""
    bad = {
        **tensors_of(),
        "text_encoder.layers.0.lora_A.weight": torch.ones(2, 2),
        "transformer.x_embedder.lora_A.weight": torch.ones(2, 4),
        "transformer.context_embedder.lora_B.weight": torch.ones(4, 2),
        "transformer.norm_out.linear.alpha": torch.tensor(1.0),
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 4),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(4, 3),
        "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": torch.ones(4),
        "transformer.transformer_blocks.0.attn.to_k.lora_B.weight": torch.tensor(1.0),
        **tensors_of(module="transformer.transformer_blocks.1.attn.to_q"),
        "transformer.transformer_blocks.2.attn.to_q.lora_A.weight": torch.ones(2, 4).int(),
        "transformer.transformer_blocks.2.attn.to_q.lora_B.weight": torch.ones(4, 2),
        "rubbish": torch.ones(1),
    }
    bad["transformer.transformer_blocks.1.attn.to_q.lora_B.weight"][3, 1] = torch.nan
    message = refusal(save(tmp_path / "a.safetensors", bad))
    for expected in (
        "(8 problems)",
        "unknown keys: rubbish",
        "lora_A without lora_B: x_embedder",
        "lora_B without lora_A: context_embedder",
        "alpha without matrices: norm_out.linear",
        "rank mismatch: transformer_blocks.0.attn.to_k (A [4], B []), "
        "transformer_blocks.0.attn.to_q (A [2, 4], B [4, 3])",
        "NaN or infinity in: transformer.transformer_blocks.1.attn.to_q.lora_B.weight",
        "number formats: transformer.transformer_blocks.2.attn.to_q.lora_A.weight (int32)",
        "alpha: missing in these modules while others have one",
    ):
        assert expected in message


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    """An empty file is no LoRA without effect."""
    assert "holds no tensors" in refusal(save(tmp_path / "a.safetensors", {}, note="x"))


def test_an_adapter_without_modules_is_not_written(tmp_path: Path) -> None:
    """Diffusers cannot load such a file, so we do not make one."""
    with pytest.raises(AdapterError, match="the adapter has no modules"):
        write_adapter(tmp_path / "a.safetensors", Adapter({}, {}))
    assert not (tmp_path / "a.safetensors").exists()


def test_diffusers_loads_the_same_modules_and_outputs(
    tmp_path: Path,
    scaled_adapter: Adapter,
    tiny_pipeline: FluxPipeline,
    velocity: Velocity,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """FluxPipeline.load_lora_weights on our file does what attach_adapter does, in every case."""
    transformer = tiny_pipeline.transformer
    attach_adapter(transformer, scaled_adapter)
    ours = velocity(transformer)
    detach(transformer)
    write_adapter(tmp_path / "a.safetensors", scaled_adapter)
    said = _load(tiny_pipeline, tmp_path / "a.safetensors", caplog)
    found = {name for name, layer in transformer.named_modules() if isinstance(layer, LoraLayer)}
    assert found == scaled_adapter.modules.keys()
    torch.testing.assert_close(velocity(transformer), ours, rtol=1e-4, atol=1e-5)
    assert [message for message in said if not message.startswith(NO_TEXT_LORA)] == []


def test_the_embedded_model_loads_a_full_file_in_its_pipeline(
    tmp_path: Path, nano_flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole FluxPipeline takes an adapter of all 504 layers; no key is unexpected or missing."""
    pipeline = FluxPipeline.from_pretrained(nano_flux)
    modules = {
        module: LoraPair(keyed_normal((2, columns), module), torch.ones(rows, 2), 1.0)
        for module, (rows, columns) in linear_shapes(pipeline.transformer).items()
    }
    assert len(modules) == 504
    write_adapter(tmp_path / "a.safetensors", Adapter(modules, {"key": "text"}))
    said = _load(pipeline, tmp_path / "a.safetensors", caplog)
    assert [message for message in said if not message.startswith(NO_TEXT_LORA)] == []
    layers = [layer for layer in pipeline.transformer.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 504


def test_the_transformer_alone_loads_a_file_in_silence(
    tmp_path: Path,
    adapter: Adapter,
    tiny_flux: FluxTransformer2DModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Through load_lora_adapter diffusers, PEFT and Python warn of nothing at all."""
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter)
    with warnings.catch_warnings(record=True) as warned, _capture(caplog):
        warnings.simplefilter("always")
        tiny_flux.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
    assert [str(each.message) for each in warned] == []
    assert [record.getMessage() for record in caplog.records] == []


def test_files_that_diffusers_writes_are_read(
    tmp_path: Path, scaled_adapter: Adapter, tiny_flux: FluxTransformer2DModel
) -> None:
    """save_lora_weights, with the config in the header and per-module alphas, gives our pairs."""
    attach_adapter(tiny_flux, scaled_adapter)
    tensors, config = {}, tiny_flux.peft_config[ADAPTER_NAME].to_dict()
    for module, pair in scaled_adapter.modules.items():
        tensors[f"{module}.lora_A.weight"] = pair.down
        tensors[f"{module}.lora_B.weight"] = pair.up
    FluxPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=config
    )
    tiny_flux.save_lora_adapter(tmp_path / "bare", adapter_name=ADAPTER_NAME)
    for folder in (tmp_path, tmp_path / "bare"):
        read = read_adapter(folder / "pytorch_lora_weights.safetensors")
        assert read.modules.keys() == scaled_adapter.modules.keys()
        for module, pair in scaled_adapter.modules.items():
            assert read.modules[module].alpha == pair.alpha
            assert torch.equal(read.modules[module].up, pair.up)


def _capture(caplog: pytest.LogCaptureFixture) -> _Captured:
    return _Captured(caplog)


class _Captured:
    """Warnings of diffusers, PEFT and transformers, which do not reach the root logger."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        """Keep the fixture that collects."""
        self.caplog = caplog
        self.loggers = [logging.getLogger(name) for name in ("diffusers", "peft", "transformers")]

    def __enter__(self) -> None:
        """Start to collect."""
        for logger in self.loggers:
            logger.addHandler(self.caplog.handler)

    def __exit__(self, *_: object) -> None:
        """Stop to collect."""
        for logger in self.loggers:
            logger.removeHandler(self.caplog.handler)


def _load(pipeline: FluxPipeline, path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Load a file as a user does and return everything that was warned of on the way."""
    with warnings.catch_warnings(record=True) as warned, _capture(caplog):
        warnings.simplefilter("always")
        caplog.clear()
        pipeline.load_lora_weights(str(path))
    return [str(each.message) for each in warned] + [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
