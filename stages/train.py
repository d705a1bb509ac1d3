"""Train a LoRA by flow matching and choose its best checkpoint.

Reads:   latents and text embeddings (--encoded), the base model (--weights): the transformer, and
         the VAE for the sample pictures alone.
Writes:  adapter.safetensors (equal to the chosen checkpoint), checkpoints/step-*.safetensors,
         samples/step-<step>-<prompt>.png, history.csv (HISTORY), scores.csv (SCORES) of the
         checkpoints, sheet.png (checkpoints x prompts), diagnosis.csv (DIAGNOSIS), metrics.json.
Params:  train, model, sampling.

The recipe is that of ai-toolkit's FLUX.1-dev example (ostris/ai-toolkit,
config/examples/train_lora_flux_24gb.yaml), with every draw keyed on seed, step and sample. A run
that was killed goes on from its state in $BLOCKLENS_STATE (.blocklens), to the same bytes.

Also: `python -m stages.train export-config --to ai-toolkit|kohya OUT` writes this run's settings
for another trainer, and `import-config FILE OUT` params from an ai-toolkit YAML.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import add_shaped_lora
from stages.adapters.training_adapter import TrainingAdapter, open_training_adapter
from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import ModelParams, SamplingParams, Section, TrainParams
from stages.encoding.encoded import Encoded, Prompt, read_encoded
from stages.families.architecture import Architecture, read_architecture
from stages.families.latents import encode_pictures
from stages.families.loading import checkpoint_blocks, load_transformer
from stages.families.quantisation import require_hardware
from stages.families.weights import ensure_weights, read_manifest
from stages.imaging.checkpoint_sheet import MOST_ROWS
from stages.judging.results import write_results
from stages.judging.scoring import Painter
from stages.judging.selection import require_checkpoints
from stages.judging.verdict import judge
from stages.optimisation.optimiser import require_optimiser
from stages.optimisation.schedule import pictures_per_step, settle_steps
from stages.runtime.console import Command, run_stage
from stages.runtime.device import configure_torch, rounding
from stages.runtime.files import sha256_file
from stages.runtime.fingerprint import run_fingerprint, source_hashes
from stages.runtime.outputs import replace_folder
from stages.runtime.state_folder import run_folder
from stages.sampling.generation import Job, generate, make_generator
from stages.training.announcement import announce
from stages.training.board import require_board
from stages.training.distribution import joined_processes, start_processes
from stages.training.loop import Pictures, Run, train_adapter
from stages.training.lora_forward import shorten_lora_forward
from stages.training.memory import LOADING, SCORING, explained_memory
from stages.training.metadata import Origin, adapter_metadata
from stages.training.state import clear_state
from stages.training.targets import plan_lora
from stages.training.trainee import count_parameters

_TRAINER_FILES = "stages.exporting.trainer_files"  # imported on demand: no part of the training
_PARAMS = Path("params.yaml")
_HALF_RANGE = 127.5  # 0-255 becomes -1..1
_log = logging.getLogger(__name__)


def train(
    params: TrainParams,
    model: ModelParams,
    sampling: SamplingParams,
    *,
    weights: Path,
    encoded: Path,
    out: Path,
) -> None:
    """Write the adapter, its checkpoints, samples, history and metrics into `out`.

    Raises:
        AdapterError: the training adapter cannot be read, or does not fit the base model.
        DatasetError: the encoded pictures are broken or do not fit the base model.
        HardwareError: a package or GPU that `model`, `train.optimiser` or the environment asks for
            is missing.
        ParamsError: the blocks to train are not those of the base model.
        TrainingError: a loss or gradient is not finite, or memory ran out.
    """
    device = configure_torch()
    require_hardware(model, device)
    require_optimiser(params.optimiser, device)
    require_board()
    with joined_processes(device, pictures_per_step(params)) as world:
        with explained_memory(params, model, LOADING):
            run, painter, state = _prepare(params, model, sampling, device, weights, encoded)
        journal = train_adapter(run, state)
        if not world.leads:
            return
        with explained_memory(params, model, SCORING):
            verdict = judge(run, painter, journal, state)
        with replace_folder(out) as work:
            write_results(work, run, journal, verdict, state)
        clear_state(state)


def _prepare(
    params: TrainParams,
    model: ModelParams,
    sampling: SamplingParams,
    device: torch.device,
    weights: Path,
    encoded: Path,
) -> tuple[Run, Painter, Path]:
    """Return the run, with the adapter on the model, what draws with it, and its state's folder."""
    folder = ensure_weights(weights)
    architecture = read_architecture(folder)
    data = read_encoded(encoded)
    _require_fit(encoded, data, architecture)
    state = _state_folder({"train": params, "model": model, "sampling": sampling}, weights, encoded)
    params = settle_steps(params, len(data.training))
    require_checkpoints(params, MOST_ROWS - 1)  # the base model has a row in the sheet, too
    plan = plan_lora(architecture, params)
    transformer = load_transformer(folder, model, device)
    distilled: Callable[[], AbstractContextManager[None]] = nullcontext
    if params.training_adapter is not None:
        helper = TrainingAdapter(transformer, open_training_adapter(params.training_adapter))
        distilled = helper.off
        _log.info("training adapter %s: off in sample pictures", params.training_adapter.file)
    add_shaped_lora(transformer, plan, params.seed)
    shorten_lora_forward(transformer)
    if params.gradient_checkpointing:
        checkpoint_blocks(transformer)
    announce(params, data, plan, count_parameters(transformer))
    origin = Origin(_base_name(weights), architecture, data, source_hashes(Path(__file__)))
    painter = _painter(folder, transformer, data, sampling, params.sample_seed, distilled)
    run = Run(
        transformer,
        data,
        params,
        model,
        describe=partial(adapter_metadata, origin, params, model),
        draw_samples=painter.samples,
    )
    return run, painter, state


def _painter(
    folder: Path,
    transformer: FluxTransformer2DModel,
    data: Encoded,
    sampling: SamplingParams,
    seed: int,
    distilled: Callable[[], AbstractContextManager[None]],
) -> Painter:
    """Return what draws one picture per prompt, with the adapter as it is, all of one seed.

    `distilled` is a context in which the base is as it will be used, without a training adapter.
    """
    texts = {one.prompt: one.text for one in (*data.samples, *data.plain)}
    generator = make_generator(folder, transformer, texts, sampling)

    def draws(prompts: Sequence[Prompt]) -> Callable[[], Pictures]:
        jobs = [Job(one.prompt, seed) for one in prompts]
        few = sampling.model_copy(update={"batch": max(1, min(sampling.batch, len(jobs)))})

        def draw() -> Iterator[npt.NDArray[np.uint8]]:
            with distilled():
                yield from (picture for _, picture in generate(generator, jobs, few))

        return draw

    def encoded(picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        pixels = torch.from_numpy(picture.copy()).float().permute(2, 0, 1)[None] / _HALF_RANGE - 1
        return encode_pictures(generator.vae, pixels)[0][0]

    return Painter(draws(data.samples), draws(data.plain), encoded)


def _require_fit(encoded: Path, data: Encoded, architecture: Architecture) -> None:
    channels = data.training[0].latents.mean.shape[0]
    if channels != architecture.latent_channels:
        what = f"latents have {channels} channels, the transformer {architecture.latent_channels}"
        problem = Problem(str(encoded), what, "Run `dvc repro encode`.")
        raise DatasetError("The encoded pictures are another base model's", [problem])


def _base_name(weights: Path) -> str:
    """Return where the base comes from, without a path: repository@revision, or the manifest."""
    manifest = read_manifest(weights)
    if manifest.repository is not None:
        return f"{manifest.repository}@{manifest.revision}"
    return f"manifest sha256:{sha256_file(weights)}"


def _state_folder(params: Mapping[str, Section], weights: Path, encoded: Path) -> Path:
    inputs = {"weights": sha256_file(weights), "rounding": rounding()}
    inputs |= {path.name: sha256_file(path) for path in sorted(encoded.glob("*.*"))}
    values = {name: section.model_dump() for name, section in params.items()}
    return run_folder("train", run_fingerprint(values, inputs, Path(__file__)))


def main() -> None:
    """Run the stage as dvc.yaml does; on several GPUs where the environment says so."""
    start_processes("stages.train")
    run_stage(
        train,
        sections=("train", "model", "sampling"),
        paths=("weights", "encoded", "out"),
        commands={
            "export-config": Command(
                f"{_TRAINER_FILES}:export_config",
                ("out",),
                {"params": _PARAMS, "to": ("ai-toolkit", "kohya")},
            ),
            "import-config": Command(
                f"{_TRAINER_FILES}:import_config", ("file", "out"), {"params": _PARAMS}
            ),
        },
    )


if __name__ == "__main__":
    main()
