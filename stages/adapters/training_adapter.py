"""A frozen LoRA that the base model carries while it is trained, and not while it is sampled.

FLUX.1-schnell is distilled to four steps, and training on it undoes that. A training adapter (such
as ostris/FLUX.1-schnell-training-adapter) undoes it beforehand, so that the LoRA need not; without
the adapter, LoRA and base draw in four steps again.

ai-toolkit adds it to the weights before training and subtracts it for pictures (ostris/ai-toolkit,
toolkit/stable_diffusion_model.py), which in 16 bits does not give the same weights back. Here it is
a path beside each base layer, y + scale B A x in float32: the base's tensors are never touched,
quantised or not, and off means exactly the base. At rank 16 it costs 344 MB on FLUX.1 and about
the time that the trained LoRA takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn import functional

from stages.adapters.compatibility import linear_shapes, require_fit
from stages.adapters.files import read_adapter
from stages.adapters.listing import list_names
from stages.adapters.module import Adapter, plain_pairs
from stages.adapters.pair import LoraPair
from stages.contracts.errors import AdapterError, Problem
from stages.contracts.params import TrainingAdapterParams
from stages.families.hub import download
from stages.runtime.files import sha256_file

Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


def open_training_adapter(params: TrainingAdapterParams) -> Adapter:
    """Return the adapter that `params` name.

    What it holds is decided by params.yaml alone: by the commit, or by the SHA-256 of the file.

    Raises:
        AdapterError: the file is missing, no plain LoRA of a FLUX transformer, or another one.
        WeightsError: the Hub does not have it, or cannot be reached.
    """
    path = Path(params.file)
    if params.repository is not None and params.revision is not None:
        path = download(params.repository, params.revision, [params.file]) / params.file
    adapter = read_adapter(path)
    if odd := adapter.modules.keys() - plain_pairs(adapter).keys():
        what = f"no plain LoRA in: {list_names(odd)}"
        problem = Problem(f"train.training_adapter, {path}", what, "Use a plain LoRA.")
        raise AdapterError("The training adapter cannot be used", [problem])
    if params.sha256 is not None and (found := sha256_file(path)) != params.sha256:
        problem = Problem(
            f"train.training_adapter, {path}",
            f"SHA-256 is {found}, expected {params.sha256}",
            "Get the file again; if it is the one you mean, put its hash into params.yaml.",
        )
        raise AdapterError("The training adapter is another one", [problem])
    return adapter


class TrainingAdapter:
    """A training adapter on a model; on until `off`."""

    def __init__(self, transformer: FluxTransformer2DModel, adapter: Adapter) -> None:
        """Put `adapter` on the base layers of `transformer`, which carries no LoRA yet.

        One that is put on later is trained beside it and does not hold it.

        Raises:
            AdapterError: the adapter has modules that the model lacks, or other shapes.
        """
        require_fit(adapter, linear_shapes(transformer))
        self._on = True
        for module, pair in plain_pairs(adapter).items():
            hook = self._hook(pair, transformer.device)
            transformer.get_submodule(module).register_forward_hook(hook)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model be without the adapter for as long as the context lasts."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def _hook(self, pair: LoraPair, device: torch.device) -> Hook:
        down = pair.down.to(device, torch.float32)
        up = (pair.up * pair.scale).to(device, torch.float32)

        def add(
            _layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            if not self._on:
                return output
            change = functional.linear(functional.linear(inputs[0].float(), down), up)
            return (output.float() + change).to(output.dtype)

        return add
