"""What a process opens once: a scene, what is missing for it, and the versions of the adapter."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.matched_noise import matched_noise
from stages.adapters.reranking import at_rank
from stages.adapters.strengths import with_strengths
from stages.contracts.params import ModelParams, SamplingParams
from stages.runtime.crew import open_crew
from stages.sampling.generation import Job
from stages.sampling.prompts import NamedPrompt
from stages.sampling.session import (
    AS_TRAINED,
    AdapterVersion,
    Scene,
    draw,
    draw_all,
    open_session,
    scene_problems,
    set_scene,
)
from tests.sampling.planting import (
    plant_adapter,
    same_strength,
    tiny_architecture,
    write_tiny_folder,
)

MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=1, guidance=2.5, batch=2)
BLOCKS = tiny_architecture().blocks
PROMPT = NamedPrompt("develop-0", "tok, a robot")


@pytest.fixture
def scene(tmp_path: Path, tiny_flux: FluxTransformer2DModel, nano_flux: Path) -> Scene:
    """A scene of the tiny model with an adapter in all its blocks."""
    path = tmp_path / "adapter.safetensors"
    strengths = same_strength(BLOCKS, 0.1)
    write_adapter(path, plant_adapter(tiny_architecture(), linear_shapes(tiny_flux), strengths))
    weights = write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    described: Scene = set_scene(weights, path, [PROMPT], MODEL, SAMPLING).description
    return described


def test_a_scene_is_small_and_can_be_sent(scene: Scene) -> None:
    """It names files and holds no weights."""
    sent = pickle.dumps(scene)
    assert pickle.loads(sent) == scene
    assert len(sent) < scene.adapter.stat().st_size / 4
    assert scene.folder.is_absolute()
    assert scene.threads == torch.get_num_threads()


def test_threads_are_the_drivers(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLOCKLENS_THREADS of the driver is what every process uses."""
    monkeypatch.setenv("BLOCKLENS_THREADS", "1")
    weights = tmp_path / "manifest.json"
    described = set_scene(weights, scene.adapter, [PROMPT], MODEL, SAMPLING).description
    assert described.threads == 1


def test_what_a_machine_lacks_is_named(scene: Scene) -> None:
    """Another device, another adapter, and every file of the weights that is not the driver's."""
    assert scene_problems(scene) == []
    scene.adapter.write_bytes(scene.adapter.read_bytes() + b" ")
    short, gone = (scene.folder / scene.files[place].path for place in (0, 1))
    short.write_bytes(b"")
    gone.unlink()
    told = {one.where: one.what for one in scene_problems(replace(scene, device="cuda"))}
    assert told == {
        "device": "computes on cpu, the driver on cuda",
        str(scene.adapter): "is another file than the driver's",
        str(short): f"0 bytes, not {scene.files[0].size_bytes}",
        str(gone): "missing",
    }
    scene.adapter.unlink()
    assert (str(scene.adapter), "missing") in [(p.where, p.what) for p in scene_problems(scene)]


def test_versions_are_made_of_the_adapter(scene: Scene) -> None:
    """As trained, noise of its size, some blocks at strengths, and those at a smaller rank."""
    source = read_adapter(scene.adapter)
    some = {BLOCKS[1]: 1.0, BLOCKS[2]: 0.5}
    kept = with_strengths(source, some)
    expected = {
        AS_TRAINED: source,
        AdapterVersion(noise_seed=3): matched_noise(source, 3),
        AdapterVersion(strengths=tuple(some.items())): kept,
        AdapterVersion(strengths=tuple(some.items()), rank=1): at_rank(kept, 1)[0],
    }
    for version, adapter in expected.items():
        made = version.of(source)
        assert made.blocks == adapter.blocks
        for name, change in adapter.modules.items():
            assert torch.equal(made.modules[name].up, change.up)
            assert torch.equal(made.modules[name].down, change.down)


def test_a_session_changes_clothes(scene: Scene) -> None:
    """What it wore before leaves no trace in a picture."""
    job = Job(PROMPT.name, 0, (1.0,) * len(BLOCKS))
    with open_session(scene) as session:
        (first,) = draw(session, (AS_TRAINED, [job]))
        (noise,) = draw(session, (AdapterVersion(noise_seed=3), [job]))
        (again,) = draw(session, (AS_TRAINED, [job]))
    assert not np.array_equal(first, noise)
    np.testing.assert_array_equal(first, again)


def test_pictures_come_in_the_order_of_the_jobs(tmp_path: Path, scene: Scene) -> None:
    """Whole batches and what is left, each picture by its own gates."""
    gates = [(value,) * len(BLOCKS) for value in (0.0, 1.0, 0.0)]
    jobs = [Job(PROMPT.name, 0, each) for each in gates]
    setting = set_scene(tmp_path / "manifest.json", scene.adapter, [PROMPT], MODEL, SAMPLING)
    with open_crew(setting) as crew:
        none, full, same = draw_all(crew, AS_TRAINED, jobs, SAMPLING.batch)
    np.testing.assert_array_equal(none, same)
    assert not np.array_equal(none, full)
