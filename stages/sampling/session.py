"""The session of a process that draws or measures with one adapter: models loaded once, by name.

A `Scene` says all that such a process needs, small enough to be sent to any machine that sees the
same files: the base model and the adapter are named, not sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from stages.adapters.files import read_adapter
from stages.adapters.matched_noise import matched_noise
from stages.adapters.module import Adapter
from stages.adapters.reranking import at_rank
from stages.adapters.strengths import with_strengths
from stages.contracts.blocks import BlockId
from stages.contracts.errors import Problem
from stages.contracts.params import ModelParams, SamplingParams
from stages.families.loading import checkpoint_blocks
from stages.families.weights import WeightFile, ensure_weights, read_manifest
from stages.runtime.crew import Crew, Setting, ordered
from stages.runtime.device import configure_torch, cpu_threads, device_type
from stages.runtime.files import sha256_file
from stages.sampling.adapted_generator import adapted, load_generator
from stages.sampling.generation import Generator, Job, generate, generate_latents
from stages.sampling.prompts import NamedPrompt

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """What a session is opened with. Paths are absolute, and the same on every machine.

    `compiled` and `checkpointed` say how the transformer's blocks run; `device` is the driver's
    type of device and `threads` its number of torch threads: both decide how a sum is rounded.
    """

    folder: Path
    files: tuple[WeightFile, ...]
    adapter: Path
    adapter_sha256: str
    prompts: tuple[NamedPrompt, ...]
    model: ModelParams
    sampling: SamplingParams
    compiled: bool
    checkpointed: bool
    device: str
    threads: int


@dataclass(frozen=True)
class AdapterVersion:
    """The scene's adapter, or what is made of it.

    Noise of its size with `noise_seed`; the blocks of `strengths` alone, at those; no layer above
    `rank`.
    """

    noise_seed: int | None = None
    strengths: tuple[tuple[BlockId, float], ...] | None = None
    rank: int | None = None

    def of(self, source: Adapter) -> Adapter:
        """Return what is made of the adapter `source`."""
        made = source if self.noise_seed is None else matched_noise(source, self.noise_seed)
        if self.strengths is not None:
            made = with_strengths(made, dict(self.strengths))
        return made if self.rank is None else at_rank(made, self.rank)[0]


AS_TRAINED: Final = AdapterVersion()


@dataclass
class Session:
    """A loaded model, and which version of the adapter it has."""

    bare: Generator
    source: Adapter
    scene: Scene
    attached: ExitStack
    current: tuple[AdapterVersion, Generator] | None = None

    def generator_for(self, version: AdapterVersion) -> Generator:
        """Return the generator with this version attached, with a gate for each of its blocks.

        Raises:
            AdapterError: the adapter does not fit the base model.
        """
        if self.current is None or self.current[0] != version:
            self.current = None
            self.attached.close()
            scene, adapter = self.scene, version.of(self.source)
            opened = adapted(self.bare, adapter, scene.sampling, compiled=scene.compiled)
            self.current = version, self.attached.enter_context(opened)
        return self.current[1]


def set_scene(
    weights: Path,
    adapter: Path,
    prompts: Collection[NamedPrompt],
    model: ModelParams,
    sampling: SamplingParams,
    *,
    compiled: bool = False,
    checkpointed: bool = False,
) -> Setting[Session]:
    """Return what a crew's sessions are opened with.

    Raises:
        WeightsError: the base weights of the manifest `weights` are missing or changed.
    """
    # Not configure_torch's: the GPU is claimed by who computes.
    scene = Scene(
        ensure_weights(weights).resolve(),
        read_manifest(weights).files,
        adapter.resolve(),
        sha256_file(adapter),
        tuple(prompts),
        model,
        sampling,
        compiled,
        checkpointed,
        device_type(),
        cpu_threads(),
    )
    return Setting(open_session, scene_problems, scene)


@contextmanager
def open_session(scene: Scene) -> Iterator[Session]:
    """Yield a session with the base model loaded and the prompts embedded.

    Raises:
        HardwareError: a package or GPU that the model's params ask for is missing.
    """
    configure_torch()
    torch.set_num_threads(scene.threads)
    bare = load_generator(scene.folder, scene.prompts, scene.model, scene.sampling)
    if scene.checkpointed:
        checkpoint_blocks(bare.transformer)
    with ExitStack() as attached:
        yield Session(bare, read_adapter(scene.adapter), scene, attached)
    del bare
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def scene_problems(scene: Scene) -> list[Problem]:
    """Return what this machine lacks for a scene: files, or the kind of device."""
    problems = []
    device = device_type()
    if device != scene.device:
        what = f"computes on {device}, the driver on {scene.device}"
        problems.append(Problem("device", what, "Set BLOCKLENS_DEVICE to the same on both."))
    shared = "Mount the driver's file system there, at the same path."
    if not scene.adapter.is_file():
        problems.append(Problem(str(scene.adapter), "missing", shared))
    elif sha256_file(scene.adapter) != scene.adapter_sha256:
        problems.append(Problem(str(scene.adapter), "is another file than the driver's", shared))
    for file in scene.files:
        path = scene.folder / file.path
        if not path.is_file():
            problems.append(Problem(str(path), "missing", shared))
        elif (size := path.stat().st_size) != file.size_bytes:
            problems.append(Problem(str(path), f"{size} bytes, not {file.size_bytes}", shared))
    return problems


def draw(session: Session, versioned_jobs: tuple[AdapterVersion, Sequence[Job]]) -> list[Picture]:
    """Return the RGB pictures uint8 [H, W, 3] of jobs with one version of the adapter."""
    version, jobs = versioned_jobs
    made = generate(session.generator_for(version), jobs, session.scene.sampling)
    return [picture for _, picture in made]


def finish_latents(
    session: Session, sized_jobs: tuple[int, Sequence[Job]]
) -> npt.NDArray[np.float32]:
    """Return the finished tokens [jobs, N, 4C] of a batch of that size, padded where it is less."""
    size, jobs = sized_jobs
    sampling = session.scene.sampling.model_copy(update={"batch": size})
    latents = generate_latents(session.generator_for(AS_TRAINED), jobs, sampling)
    finished: npt.NDArray[np.float32] = latents.float().cpu().numpy()
    return finished


def draw_all(
    crew: Crew[Session], version: AdapterVersion, jobs: Sequence[Job], batch: int
) -> Iterator[Picture]:
    """Yield the RGB picture uint8 [H, W, 3] of each job, `batch` at a time, in their order."""
    batches = ((version, jobs[start : start + batch]) for start in range(0, len(jobs), batch))
    for pictures in ordered(crew, draw, batches):
        yield from pictures
