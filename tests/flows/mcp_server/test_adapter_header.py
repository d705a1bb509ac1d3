"""The door takes the LoRA files that the stages read, by their names and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file

from flows.mcp_server.adapter_header import adapter_problem
from stages.adapters.compatibility import linear_shapes
from stages.adapters.formats.names import PARTS
from stages.adapters.reading import read_file
from stages.contracts.errors import AdapterError
from tests.adapters.formats.foreign_files import FORMATS, write_foreign

LAYER = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize("name", FORMATS)
def test_every_spelling_is_taken(
    name: str, tiny_flux: FluxTransformer2DModel, tmp_path: Path
) -> None:
    """What other programs write gets in, as it is read later."""
    foreign = write_foreign(FORMATS[name], "full", linear_shapes(tiny_flux))
    path = tmp_path / "a.safetensors"
    save_file(foreign.tensors, path)
    assert adapter_problem(path, "a") is None
    assert read_file(path).sources


@pytest.mark.parametrize("end", [end for part in PARTS if part != "alpha" for end in PARTS[part]])
def test_every_part_but_a_magnitude_says_that_it_is_a_lora(end: str, tmp_path: Path) -> None:
    """LoHa and LoKr too; a magnitude never stands without a LoRA."""
    save_file({f"{LAYER}.{end}": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    problem = adapter_problem(tmp_path / "a.safetensors", "a")
    assert (problem is None) == (end not in PARTS["magnitude"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_are_those_that_the_stages_read(dtype: torch.dtype, tmp_path: Path) -> None:
    """Refused before 4 GiB were sent, not after; an alpha may be any number."""
    pair = {"lora_A": torch.ones(2, 4), "lora_B": torch.ones(4, 2)}
    tensors = {f"{LAYER}.{end}.weight": tensor.to(dtype) for end, tensor in pair.items()}
    path = tmp_path / "a.safetensors"
    save_file(tensors | {f"{LAYER}.alpha": torch.tensor(2.0, dtype=torch.float64)}, path)
    problem = adapter_problem(path, "a")
    if problem is None:
        assert read_file(path).alphas == {LAYER.removeprefix("transformer."): 2.0}
        return
    assert "has tensors of F64" in problem.what
    with pytest.raises(AdapterError, match="unreadable number formats"):
        read_file(path)
