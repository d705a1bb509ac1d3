"""The base model's weights in 8 or 4 bits, through diffusers' own quantisation configs.

int8 and fp8 are torchao's weight-only formats (one scale per output row); nf4 is bitsandbytes'
4-bit normal float with quantised constants (QLoRA, arXiv 2305.14314, section 3). All compute in
bfloat16: a weight is unpacked where a layer needs it. Gradients pass through to the adapter.

Only the blocks' Linear layers are quantised. The embedders, norm_out and proj_out are 0.4 % of
FLUX.1's numbers and all that the velocity passes through, so they keep their precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import BitsAndBytesConfig, FluxTransformer2DModel, TorchAoConfig
from safetensors import safe_open
from torch import nn

from stages.contracts.errors import HardwareError, Problem, WeightsError
from stages.contracts.params import ModelParams
from stages.runtime.machine import model_problems

_KEPT: Final = ("x_embedder", "context_embedder", "time_text_embed", "norm_out")
# Diffusers matches names by part. torchao's `proj_out.weight` is the whole name of one tensor;
# `proj_out` would be that of every single block, too.
_FINAL: Final = "proj_out"


def require_hardware(model: ModelParams, device: torch.device) -> None:
    """Raise HardwareError unless this machine can run the base model as `model` says.

    Raises:
        HardwareError: a package is missing, or a GPU; all that is missing is named.
    """
    problems = model_problems(model, device.type)
    if problems:
        raise HardwareError("This machine cannot run the base model as params.yaml says", problems)


def quantisation_config(quantisation: str) -> TorchAoConfig | BitsAndBytesConfig:
    """Return diffusers' config for `int8`, `fp8` or `nf4`; its package must be installed."""
    if quantisation == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=list(_KEPT),
        )
    return TorchAoConfig(_torchao_type(quantisation), [*_KEPT, f"{_FINAL}.weight"])


def restore_projection(transformer: FluxTransformer2DModel, folder: Path) -> None:
    """Give the transformer the final projection of its file, which nf4 cannot leave out.

    bitsandbytes' rule for names skips by their last part, and every single block has a proj_out.

    Raises:
        WeightsError: the folder's files do not hold it.
    """
    old = transformer.proj_out
    weight, bias = (_read_tensor(folder, f"{_FINAL}.{name}") for name in ("weight", "bias"))
    new = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    kind = {"device": old.bias.device, "dtype": transformer.dtype}
    new.weight, new.bias = nn.Parameter(weight.to(**kind)), nn.Parameter(bias.to(**kind))
    transformer.proj_out = new


def _torchao_type(quantisation: str) -> Any:
    # Imported where it is needed: torchao is optional.
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[quantisation]()


def _read_tensor(folder: Path, name: str) -> torch.Tensor:
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                tensor: torch.Tensor = file.get_tensor(name)
                return tensor
    problem = Problem(str(folder / "transformer"), f"no tensor {name}", "Check params fetch.")
    raise WeightsError("The base model cannot be read", [problem])
