"""The pictures of the block lens."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from PIL import Image

from stages import render as module
from stages.adapters.compatibility import linear_shapes
from stages.adapters.files import write_adapter
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, ParamsError
from stages.contracts.params import ModelParams, PromptsParams, RenderParams, SamplingParams
from stages.contracts.tables import RENDERED, read_table
from stages.render import render
from stages.sampling import session
from tests.sampling.planting import plant_adapter, tiny_architecture, write_tiny_folder

BLOCKS = (BlockId("double", 1), BlockId("single", 2))
MODEL = ModelParams(precision="float32", quantisation="none", offload="none", text_tokens=16)
SAMPLING = SamplingParams(size_px=64, steps=2, guidance=2.5, batch=4)
PROMPTS = PromptsParams(
    develop=["tok, a large robot in the centre", "tok, a small robot on the left"],
    held_out=["tok, a robot"],
    without_trigger=["a red circle"],
    seeds=[0, 1],
    held_out_seeds=[2],
)
RENDER = RenderParams(
    modes=["only", "without"],
    without_trigger_modes=[],
    strengths=[],
    groups={},
    subsets={},
    random_seed=None,
    compile=False,
)
MORE = {
    "without_trigger_modes": ["without"],
    "strengths": [0.5, 1.0],
    "groups": {"early": ["double", "single.0"], "absent": ["single.0-1"]},
    "subsets": {"soft": {"double.0-1": 1.0, "single": 0.5}},
    "random_seed": 3,
}
Run = Callable[..., Path]


@pytest.fixture
def adapter(tmp_path: Path, tiny_flux: FluxTransformer2DModel) -> Path:
    """An adapter file with two blocks."""
    path = tmp_path / "adapter.safetensors"
    strengths = {BLOCKS[0]: 0.2, BLOCKS[1]: 0.1}
    write_adapter(path, plant_adapter(tiny_architecture(), linear_shapes(tiny_flux), strengths))
    return path


@pytest.fixture
def run(
    tmp_path: Path,
    tiny_flux: FluxTransformer2DModel,
    nano_flux: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """A function that renders and returns the output folder."""
    weights = write_tiny_folder(tmp_path, tiny_flux, nano_flux)
    monkeypatch.setenv("BLOCKLENS_STATE", str(tmp_path / "state"))

    def run_render(name: str = "render", **changes: object) -> Path:
        params = RENDER.model_copy(update=changes)
        paths = {"weights": weights, "adapter": adapter, "out": tmp_path / name}
        render(params, MODEL, SAMPLING, PROMPTS, **paths)
        return tmp_path / name

    return run_render


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, with their bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_every_variant_has_its_pictures(run: Run) -> None:
    """Development prompts get all variants, prompts without trigger the references only."""
    out = run()
    index = read_table(RENDERED, out / "index.csv")
    variants = index.groupby("prompt")["variant"].agg(set)
    assert variants["without-trigger-0"] == {"none", "full"}
    assert (
        variants["develop-0"]
        == variants["develop-1"]
        == {
            "none",
            "full",
            "repeat",
            *(f"{kind}:{block}" for kind in ("only", "without") for block in BLOCKS),
        }
    )
    assert set(index["file"]) == {file for file in contents(out) if file.endswith(".png")}
    assert len(index) == 2 * 2 * 7 + 2 * 2
    assert "images/develop-1-0/only-single.2.png" in set(index["file"])


def test_one_mode_is_half_the_work(run: Run) -> None:
    """Modes that params do not ask for are not rendered."""
    index = read_table(RENDERED, run(modes=["without"]) / "index.csv")
    assert not index["variant"].str.startswith("only:").any()


def test_what_is_asked_for_has_pictures_and_its_own_gates(run: Run) -> None:
    """Strengths, bands, subsets, noise and the bleeding per block; a band that is absent has none.

    The adapter has double.1 and single.2: `early` is double.1 alone, and nothing is in `absent`.
    """
    out = run(**MORE)
    index = read_table(RENDERED, out / "index.csv")
    variants = index.groupby("prompt")["variant"].agg(set)
    assert variants["without-trigger-0"] == {"none", "full", "without:double.1", "without:single.2"}
    added = {"strength:0.5", "strength:1", "only-group:early", "without-group:early"}
    added |= {"subset:soft", "random:double.1", "random:single.2"}
    assert added <= variants["develop-0"]
    assert not index["variant"].str.contains("absent").any()
    files = contents(out / "images" / "develop-0-1")
    assert files["strength-1.png"] == files["full.png"]
    assert files["only-group-early.png"] == files["only-double.1.png"]
    assert files["without-group-early.png"] == files["only-single.2.png"]
    others = [files[f"{name}.png"] for name in ("strength-0.5", "subset-soft", "random-double.1")]
    assert len({*others, files["full.png"], files["none.png"], files["only-double.1.png"]}) == 6


def test_a_picture_does_not_depend_on_what_else_is_asked_for(run: Run) -> None:
    """More variants, fewer variants: the pictures that both have are equal, byte for byte."""
    few = contents(run("few", modes=["without"]) / "images")
    many = contents(run("many", **MORE) / "images")
    assert len(few) == 4 * 5 + 2 * 2
    assert {file: many[file] for file in few} == few


def test_bands_beyond_the_model_are_refused_before_anything_is_loaded(run: Run) -> None:
    """Every pattern that names blocks which the base model lacks is in one message."""
    groups, subsets = {"all": ["double.0-18"]}, {"faces": {"single.7": 0.5}}
    with pytest.raises(ParamsError) as caught:
        run(groups=groups, subsets=subsets)
    assert "render.groups.all: 'double.0-18'" in str(caught.value)
    assert "render.subsets.faces: 'single.7'" in str(caught.value)


def test_noise_floor_and_variants_differ_as_they_should(run: Run) -> None:
    """`repeat` equals `full` on this device, and each block's pictures are its own."""
    files = contents(run() / "images" / "develop-0-1")
    assert files["repeat.png"] == files["full.png"]
    assert len(set(files.values())) == len(files) - 1 - 2
    # With two blocks in all, one alone is all but the other.
    assert files["only-double.1.png"] == files["without-single.2.png"]


def test_pictures_are_those_of_flux_pipeline(run: Run, tmp_path: Path, adapter: Path) -> None:
    """Acceptance 6: diffusers draws what render drew, with and without the adapter."""
    out = run()
    pipeline = FluxPipeline.from_pretrained(tmp_path / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for variant in ("none", "full"):
        if variant == "full":
            pipeline.load_lora_weights(adapter)
        theirs = pipeline(
            PROMPTS.develop[1],
            height=SAMPLING.size_px,
            width=SAMPLING.size_px,
            num_inference_steps=SAMPLING.steps,
            guidance_scale=SAMPLING.guidance,
            max_sequence_length=MODEL.text_tokens,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
        ours = Image.open(out / "images" / "develop-1-1" / f"{variant}.png")
        assert np.abs(np.asarray(theirs).astype(int) - np.asarray(ours).astype(int)).max() <= 1


def test_a_killed_render_goes_on_with_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill the missing batches alone are made, to the same bytes, and no state is left."""
    whole = contents(run("whole"))
    made: list[int] = []
    original = session.generate

    def killed(generator: object, jobs: list[object], sampling: SamplingParams) -> object:
        for index, picture in original(generator, jobs, sampling):
            if len(made) == 9:
                raise KeyboardInterrupt
            made.append(index)
            yield index, picture

    monkeypatch.setattr(session, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        run("resumed")
    assert not (tmp_path / "resumed").exists()
    assert len(list((tmp_path / "state").rglob("*.png"))) == 8  # whole batches
    made.append(-1)  # past the kill
    run("resumed")
    assert len(made) == 10 + 32 - 8  # the series' last batch had one picture of two: whole again
    assert contents(tmp_path / "resumed") == whole
    assert not list((tmp_path / "state").rglob("*.png"))


@pytest.mark.slow
def test_a_cluster_makes_the_same_pictures_and_survives_a_kill(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes give this one's bytes, though one is killed -9 once there is a picture."""
    alone = contents(run("alone", random_seed=3))
    original, killed = module.write_whole, list[int]()

    def keep(path: Path, write: Callable[[Path], object]) -> None:
        original(path, write)
        if not killed:
            workers = psutil.Process().children(recursive=True)
            killed.extend(worker.pid for worker in workers if is_worker(worker))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(module, "write_whole", keep)
    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    assert contents(run("cluster", random_seed=3)) == alone
    assert len(killed) == 2


def is_worker(process: psutil.Process) -> bool:
    """Whether a child is a worker, and not what looks after the children's shared resources."""
    return any("spawn_main" in word for word in process.cmdline())


def test_another_adapter_or_rounding_starts_anew(
    run: Run, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures kept from a run with another adapter, or of other threads, are not used."""
    folders = []
    content = adapter.read_bytes()
    for threads, written in (("1", content), ("1", content + b" "), ("2", content)):
        monkeypatch.setenv("BLOCKLENS_THREADS", threads)
        adapter.write_bytes(written)
        sections = {"render": RENDER, "model": MODEL}
        folders.append(module._state_folder(sections, tmp_path / "manifest.json", adapter))
    assert len(set(folders)) == 3
    assert os.fspath(folders[0]).startswith(os.fspath(tmp_path / "state"))


def test_a_truncated_adapter_leaves_the_old_pictures(run: Run, adapter: Path) -> None:
    """Acceptance 11: the message names the file, and nothing is lost."""
    before = contents(run())
    adapter.write_bytes(adapter.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"adapter\.safetensors"):
        run()
    assert contents(adapter.parent / "render") == before
