"""Pictures: equal to FluxPipeline's, and independent of what else is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from stages.adapters.attach import attach_adapter
from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import write_adapter
from stages.contracts.params import ModelParams, SamplingParams
from stages.families.architecture import read_architecture
from stages.families.loading import load_transformer
from stages.sampling.gates import block_gates
from stages.sampling.generation import Generator, Job, generate, generate_latents, make_generator
from stages.sampling.prompts import NamedPrompt, embed_prompts
from tests.sampling.planting import plant_adapter, same_strength

CPU = torch.device("cpu")
PROMPTS = (
    NamedPrompt("develop-0", "tok, a large robot in the centre, plain yellow background"),
    NamedPrompt("develop-1", "a medium blue star on the left, striped green background"),
)
MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=24)
SAMPLING = SamplingParams(size_px=64, steps=3, guidance=2.5, batch=4)


@contextmanager
def gated_generator(folder: Path, adapter_path: Path | None = None) -> Iterator[Generator]:
    """A generator of the embedded model with an adapter in three blocks."""
    transformer = load_transformer(folder, MODEL, CPU)
    architecture = read_architecture(folder)
    blocks = [architecture.blocks[index] for index in (3, 20, 50)]
    adapter = plant_adapter(architecture, linear_shapes(transformer), same_strength(blocks, 0.1))
    if adapter_path is not None:
        write_adapter(adapter_path, adapter)
    attach_adapter(transformer, adapter)
    texts = embed_prompts(folder, PROMPTS, MODEL, CPU)
    with block_gates(transformer, adapter.blocks) as gates:
        yield make_generator(folder, transformer, texts, SAMPLING, gates)


def test_pictures_are_those_of_flux_pipeline(nano_flux: Path, tmp_path: Path) -> None:
    """Acceptance 6: gates 0 and 1 give what the pipeline draws without and with the adapter."""
    path = tmp_path / "adapter.safetensors"
    jobs = [
        Job(prompt.name, seed, (value,) * 3)
        for value in (0.0, 1.0)
        for prompt, seed in zip(PROMPTS, (0, 7), strict=True)
    ]
    with gated_generator(nano_flux, path) as generator:
        ours = dict(generate(generator, jobs, SAMPLING))
    pipeline = FluxPipeline.from_pretrained(nano_flux, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for index, job in enumerate(jobs):
        if index == len(PROMPTS):
            pipeline.load_lora_weights(path)
        theirs = pipeline(
            PROMPTS[index % 2].text,
            height=SAMPLING.size_px,
            width=SAMPLING.size_px,
            num_inference_steps=SAMPLING.steps,
            guidance_scale=SAMPLING.guidance,
            max_sequence_length=MODEL.text_tokens,
            generator=torch.Generator().manual_seed(job.seed),
        ).images[0]
        distance = np.abs(np.asarray(theirs).astype(int) - ours[index].astype(int))
        assert distance.max() <= 1
    assert not np.array_equal(ours[0], ours[2])


def test_a_picture_does_not_depend_on_the_others(nano_flux: Path) -> None:
    """Alone, last of five, or in another place of the batch: the same pixels."""
    wanted = Job("develop-1", 3, (1.0, 0.0, 1.0))
    others = [Job("develop-0", seed, (0.0, 1.0, 0.5)) for seed in range(4)]
    with gated_generator(nano_flux) as generator:
        (alone,) = [picture for _, picture in generate(generator, [wanted], SAMPLING)]
        last = dict(generate(generator, [*others, wanted], SAMPLING))
        first = dict(generate(generator, [wanted, *others], SAMPLING))
    assert list(last) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(alone, last[4])
    np.testing.assert_array_equal(alone, first[0])
    assert alone.shape == (64, 64, 3)
    assert alone.dtype == np.uint8


def test_jobs_without_gates_run_the_model_as_it_is(nano_flux: Path) -> None:
    """A sample picture in training needs no gates, and is the picture of all gates 1."""
    with gated_generator(nano_flux) as generator:
        full = generate_latents(generator, [Job("develop-0", 0, (1.0, 1.0, 1.0))], SAMPLING)
        plain = generate_latents(generator, [Job("develop-0", 0)], SAMPLING)
    assert torch.equal(full, plain)


def test_gates_and_batches_are_checked(nano_flux: Path) -> None:
    """Mixed jobs, too many jobs and gates without a gated generator are refused."""
    gated, plain = Job("develop-0", 0, (1.0, 1.0, 1.0)), Job("develop-0", 0)
    with gated_generator(nano_flux) as generator:
        with pytest.raises(ValueError, match="all jobs of a batch"):
            generate_latents(generator, [gated, plain], SAMPLING)
        with pytest.raises(ValueError, match="expected 1 to 4 jobs, got 5"):
            generate_latents(generator, [plain] * 5, SAMPLING)
