"""Train a LoRA by flow matching and choose its best checkpoint.

Reads:   latents and text embeddings (--encoded), the base model (--weights): the transformer, and
         the VAE for the sample pictures alone.
Writes:  adapter.safetensors (equal to the chosen checkpoint), checkpoints/step-*.safetensors,
         samples/step-<step>-<prompt>.png, history.csv (HISTORY), metrics.json.
Params:  train, model, sampling.

The recipe is that of ai-toolkit's FLUX.1-dev example (ostris/ai-toolkit,
config/examples/train_lora_flux_24gb.yaml), with every draw keyed on seed, step and sample. A run
that was killed goes on from its state in $BLOCKLENS_STATE (.blocklens), to the same bytes.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.attach import LoraShape, add_shaped_lora, lora_parameters
from stages.adapters.training_adapter import TrainingAdapter
from stages.contracts.errors import DatasetError, Problem
from stages.contracts.params import ModelParams, SamplingParams, Section, TrainParams
from stages.contracts.tables import HISTORY, write_table
from stages.families.architecture import Architecture, read_architecture
from stages.families.loading import checkpoint_blocks, load_transformer
from stages.families.quantisation import require_hardware
from stages.families.weights import ensure_weights, read_manifest
from stages.runtime.console import run_stage
from stages.runtime.device import configure_torch
from stages.runtime.files import rounded, sha256_file, write_json
from stages.runtime.fingerprint import run_fingerprint
from stages.runtime.outputs import replace_folder
from stages.sampling.generation import Job, generate, make_generator
from stages.training.distribution import joined_processes, start_processes
from stages.training.encoded import Encoded, read_encoded
from stages.training.loop import Pictures, Run, checkpoint_name, train_adapter
from stages.training.lora_forward import shorten_lora_forward
from stages.training.metadata import Origin, adapter_metadata
from stages.training.optimiser import require_optimiser
from stages.training.schedule import pictures_per_step, settle_steps, total_steps
from stages.training.selection import choose_checkpoint
from stages.training.state import Journal, clear_state
from stages.training.targets import plan_lora
from stages.training.training_adapter import open_training_adapter

_LAST_STEPS: Final = 50
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
        HardwareError: a package or GPU that `model` or `train.optimiser` asks for is missing.
        ParamsError: the blocks to train are not those of the base model.
        TrainingError: a loss or gradient is not finite, or memory ran out.
    """
    device = configure_torch()
    require_hardware(model, device)
    require_optimiser(params.optimiser, device)
    with joined_processes(device, pictures_per_step(params)) as world:
        run, state = _prepare(params, model, sampling, device, weights, encoded)
        journal = train_adapter(run, state)
        if not world.leads:
            return
        with replace_folder(out) as work:
            _publish(work, state, journal, run)
        clear_state(state)


def _prepare(
    params: TrainParams,
    model: ModelParams,
    sampling: SamplingParams,
    device: torch.device,
    weights: Path,
    encoded: Path,
) -> tuple[Run, Path]:
    """Return the run, with the adapter on the model, and the folder of its state."""
    folder = ensure_weights(weights)
    architecture = read_architecture(folder)
    data = read_encoded(encoded)
    _require_fit(encoded, data, architecture)
    state = _state_folder({"train": params, "model": model, "sampling": sampling}, weights, encoded)
    params = settle_steps(params, len(data.training))
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
    _announce(params, data, plan, _count_parameters(transformer))
    origin = Origin(_base_name(weights), architecture, data)
    run = Run(
        transformer,
        data,
        params,
        describe=partial(adapter_metadata, origin, params, model),
        draw_samples=_sampler(folder, transformer, data, sampling, params.sample_seed, distilled),
    )
    return run, state


def _sampler(
    folder: Path,
    transformer: FluxTransformer2DModel,
    data: Encoded,
    sampling: SamplingParams,
    seed: int,
    distilled: Callable[[], AbstractContextManager[None]],
) -> Callable[[], Pictures]:
    """Return a function that draws one picture per sample prompt with the adapter as it is.

    `distilled` is a context in which the base is as it will be used, without a training adapter.
    """
    if not data.samples:
        return tuple
    texts = {sample.prompt: sample.text for sample in data.samples}
    jobs = [Job(sample.prompt, seed) for sample in data.samples]
    few = sampling.model_copy(update={"batch": min(sampling.batch, len(jobs))})
    generator = make_generator(folder, transformer, texts, few)

    def draw() -> Iterator[npt.NDArray[np.uint8]]:
        with distilled():
            yield from (picture for _, picture in generate(generator, jobs, few))

    return draw


def _require_fit(encoded: Path, data: Encoded, architecture: Architecture) -> None:
    channels = data.training[0].latents.mean.shape[0]
    if channels != architecture.latent_channels:
        what = f"latents have {channels} channels, the transformer {architecture.latent_channels}"
        problem = Problem(str(encoded), what, "Run `dvc repro encode`.")
        raise DatasetError("The encoded pictures are another base model's", [problem])


def _count_parameters(transformer: FluxTransformer2DModel) -> int:
    return sum(matrix.numel() for matrix in lora_parameters(transformer).values())


def _announce(
    params: TrainParams, data: Encoded, plan: Mapping[str, LoraShape], parameters: int
) -> None:
    counts = Counter((lora.rank, lora.alpha) for lora in plan.values())
    kinds = [
        f"rank {rank}, alpha {alpha:g} on {modules} modules"
        for (rank, alpha), modules in counts.items()
    ]
    _log.info("LoRA of %s: %s parameters", "; ".join(kinds), f"{parameters:,}")
    steps, uses = total_steps(params), sum(picture.repeats for picture in data.training)
    own_share = 1 - params.regularisation_share if data.regularisation else 1
    _log.info(
        "%d steps of %d from %d pictures at %d pixels (%.0f epochs), %d held out",
        steps,
        pictures_per_step(params),
        len(data.training),
        data.size_px,
        steps * pictures_per_step(params) * own_share / uses,
        len(data.validation),
    )
    if data.regularisation:
        _log.info(
            "%d regularisation pictures, %g %% of the samples, weight %g",
            len(data.regularisation),
            100 * params.regularisation_share,
            params.regularisation_weight,
        )
    masked = sum(picture.latents.mask is not None for picture in data.training)
    if params.masked_loss:
        _log.info("loss weighed by the masks of %d pictures; the others count wholly", masked)
    elif masked:
        _log.info("%d pictures have masks, which train.masked_loss: false leaves aside", masked)


def _base_name(weights: Path) -> str:
    """Return where the base comes from, without a path: repository@revision, or the manifest."""
    manifest = read_manifest(weights)
    if manifest.repository is not None:
        return f"{manifest.repository}@{manifest.revision}"
    return f"manifest sha256:{sha256_file(weights)}"


def _state_folder(params: Mapping[str, Section], weights: Path, encoded: Path) -> Path:
    """Return the folder of this very run's state, and say so if other runs left theirs."""
    inputs = {"weights": sha256_file(weights)}
    inputs |= {path.name: sha256_file(path) for path in sorted(encoded.glob("*.*"))}
    values = {name: section.model_dump() for name, section in params.items()}
    root = Path(os.environ.get("BLOCKLENS_STATE", ".blocklens")) / "train"
    folder = root / run_fingerprint(values, inputs, Path(__file__))
    if others := len(set(root.glob("*")) - {folder}):
        _log.info(
            "%d unfinished %s of other settings, data or code in %s: delete what you gave up",
            others,
            "run" if others == 1 else "runs",
            root,
        )
    return folder


def _publish(work: Path, state: Path, journal: Journal, run: Run) -> None:
    params = run.params
    for name in ("checkpoints", "samples"):
        (work / name).mkdir()
    for name in journal.files:
        shutil.copyfile(state / name, work / name)
    kept = {row.step for row in journal.history if checkpoint_name(row.step) in journal.files}
    choice = choose_checkpoint(journal, kept, params.select)
    adapter = work / "adapter.safetensors"
    shutil.copyfile(work / checkpoint_name(choice.step), adapter)
    write_table(HISTORY, _history(journal), work / "history.csv")
    metrics = {
        "validation_loss_base": rounded(choice.validation_loss_base),
        "validation_loss": rounded(choice.validation_loss),
        "improvement": rounded(choice.improvement),
        "selected_step": choice.step,
        **_last_losses(journal),
        "trainable_parameters": _count_parameters(run.transformer),
        "adapter_bytes": adapter.stat().st_size,
    }
    write_json(work / "metrics.json", metrics)
    _log.info(
        "chosen: step %d of %d, validation loss %.1f %% below the base model's",
        choice.step,
        total_steps(params),
        100 * choice.improvement,
    )


def _last_losses(journal: Journal) -> dict[str, float]:
    """Return the mean losses of what is to stay as it is, over the last steps that measured any."""
    found = {}
    for name in ("regularisation_loss", "preservation_loss"):
        losses = [loss for row in journal.history if (loss := getattr(row, name)) is not None]
        if losses:
            last = losses[-_LAST_STEPS:]
            found[name] = rounded(sum(last) / len(last))
    return found


def _history(journal: Journal) -> pd.DataFrame:
    frame = pd.DataFrame([asdict(row) for row in journal.history])
    return frame.astype({name: float for name in frame.columns if name != "step"})


def main() -> None:
    """Run the stage as dvc.yaml does; on several GPUs where the environment says so."""
    start_processes("stages.train")
    run_stage(train, sections=("train", "model", "sampling"), paths=("weights", "encoded", "out"))


if __name__ == "__main__":
    main()
