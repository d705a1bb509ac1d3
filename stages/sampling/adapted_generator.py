"""One loaded model with one adapter after another, for pictures of each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stages.adapters.attach import attach_adapter, detach
from stages.adapters.module import Adapter
from stages.contracts.params import ModelParams, SamplingParams
from stages.families.loading import load_transformer
from stages.families.quantisation import require_hardware
from stages.runtime.device import configure_torch
from stages.sampling.compiled_gates import compiled_gates
from stages.sampling.gates import block_gates
from stages.sampling.generation import Generator, make_generator
from stages.sampling.prompts import NamedPrompt, embed_prompts


def load_generator(
    folder: Path, prompts: Collection[NamedPrompt], model: ModelParams, sampling: SamplingParams
) -> Generator:
    """Return a generator of the base model in `folder` without an adapter.

    Raises:
        HardwareError: a package or GPU that `model` asks for is missing.
    """
    device = configure_torch()
    require_hardware(model, device)
    texts = embed_prompts(folder, prompts, model, device)
    transformer = load_transformer(folder, model, device)
    return make_generator(folder, transformer, texts, sampling)


@contextmanager
def adapted(
    generator: Generator, adapter: Adapter, sampling: SamplingParams, *, compiled: bool
) -> Iterator[Generator]:
    """Yield the generator with a gate per block of `adapter`, which is taken off on leaving.

    Args:
        generator: without an adapter.
        adapter: the one to attach; the gates' order is that of its blocks.
        sampling: how pictures are made; `batch` is the number of gates per block.
        compiled: compile the transformer's blocks, with gates that need no second compilation.

    Raises:
        AdapterError: the adapter does not fit the base model.
    """
    transformer = generator.transformer
    attach_adapter(transformer, adapter)
    try:
        opened = (
            compiled_gates(transformer, adapter.blocks, sampling.batch)
            if compiled
            else block_gates(transformer, adapter.blocks, merge=True)
        )
        with opened as gates:
            yield replace(generator, gates=gates)
    finally:
        detach(transformer)
