"""What becomes of a mix."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mixer import actions
from mixer.__main__ import open_session
from mixer.actions import Session
from mixer.saving import add_subset, save_lora
from stages.adapters.container import read_container
from stages.adapters.files import read_adapter
from stages.contracts.blocks import BlockId
from stages.contracts.errors import AdapterError, ParamsError
from stages.contracts.params import load_params
from stages.families.architecture import block_of
from stages.runtime.files import sha256_file


def test_the_file_holds_the_mix(session: Session, project: Path) -> None:
    """Blocks that are on at their strengths, and where they come from; never over another file."""
    strengths = session.presets["recommended"]
    path = save_lora(session.mixer.parts, session.files, strengths, project / "mixes", "faces")
    assert path == project / "mixes/faces.safetensors"
    saved, source = read_adapter(path), read_adapter(session.files[0])
    assert {str(block) for block in saved.blocks} == {"double.1", "single.1", "single.2"}
    for name, pair in saved.modules.items():
        wanted = strengths[block_of(name)] * source.modules[name].delta()
        torch.testing.assert_close(pair.delta(), wanted)
    metadata = read_container(path).metadata
    assert metadata["blocklens.source_sha256"] == sha256_file(session.files[0])
    assert metadata["blocklens.source_strengths"] == "1"
    assert metadata["blocklens.blocks"] == "double.1,single.1,single.2"
    assert metadata["blocklens.strengths"] == "1.2,1,0.75"
    before = path.read_bytes()
    with pytest.raises(AdapterError, match=r"faces\.safetensors: there is such a file"):
        save_lora(session.mixer.parts, session.files, strengths, project / "mixes", "faces")
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["faces.safetensors"]


def test_the_file_of_two_loras_is_their_sum_at_the_strengths_of_page_and_blocks(
    project: Path, other: Path
) -> None:
    """Each LoRA's strength times each block's; what is not in the file is said by name."""
    first = project / "data/train/adapter.safetensors"
    with ThreadPoolExecutor(1) as executor:
        stacked = open_session(project, [str(first), str(other)], project / "mixes", executor)
        on = [["double.0", "double.1"], ["single.0", "single.1"]]
        said = actions.save(stacked, "both", "tok", 0, 1, 0.6, 0.25, *on, 1.0, 0.5, 1.0, 1.2, 1.0)
    assert "both.safetensors" in said
    assert said.endswith(f"Without the weights for text encoders of {other}.")
    strengths = dict(zip(stacked.blocks, (1.0, 0.5, 1.0, 1.2), strict=False))
    saved = read_adapter(project / "mixes/both.safetensors")
    parts = [(0.6, read_adapter(first)), (0.25, read_adapter(other))]
    assert saved.blocks == stacked.blocks[:4]
    for name, change in saved.modules.items():
        held = [(factor, part.modules[name]) for factor, part in parts if name in part.modules]
        wanted = sum(factor * each.delta() for factor, each in held) * strengths[block_of(name)]
        torch.testing.assert_close(change.delta(), wanted)
    metadata = read_container(project / "mixes/both.safetensors").metadata
    assert metadata["blocklens.source_sha256"] == f"{sha256_file(first)},{sha256_file(other)}"
    assert metadata["blocklens.source_strengths"] == "0.6,0.25"
    assert metadata["blocklens.strengths"] == "1,0.5,1,1.2"


@pytest.mark.parametrize("name", ["", "../faces", "Faces", "a/b", "a" * 41])
def test_a_name_cannot_lead_elsewhere(session: Session, project: Path, name: str) -> None:
    """It comes from a web page, and becomes a file's name and a key of params.yaml."""
    whole = session.presets["all"]
    with pytest.raises(AdapterError, match="is no name for a mix"):
        save_lora(session.mixer.parts, session.files, whole, project / "mixes", name)
    with pytest.raises(ParamsError, match="is no name for a mix"):
        add_subset(project, name, whole, session.blocks)
    assert not (project / "mixes").exists()


def test_a_mix_of_nothing_is_no_file(session: Session, project: Path) -> None:
    """Neither blocks nor LoRAs that are all off make one."""
    session.mixer.restack([0.0])
    for strengths in (session.presets["none"], session.presets["all"]):
        with pytest.raises(AdapterError, match="no block is on"):
            save_lora(session.mixer.parts, session.files, strengths, project / "mixes", "nothing")


def test_a_subset_is_one_line_of_params(session: Session, project: Path) -> None:
    """The rest of the file stays, comments too; render reads the same strengths from it."""
    before = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    said = add_subset(project, "faces", session.presets["recommended"], session.blocks)
    assert said == "faces: {double.1: 1.2, single.1: 1, single.2: 0.75}"
    after = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    line = "    faces: {double.1: 1.2, single.1: 1.0, single.2: 0.75}"
    assert after.count(line) == 1
    after.remove(line)
    assert after == before
    subsets = load_params(project / "params.yaml").render.subsets
    assert subsets["faces"] == {"double.1": 1.2, "single.1": 1.0, "single.2": 0.75}
    assert "soft-single" in subsets


def test_what_params_cannot_say_is_refused(session: Session, project: Path) -> None:
    """The file is as it was: a name that is taken, nothing on, a strength beyond the range."""
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"render\.subsets\.soft-single: there is such a subset"):
        add_subset(project, "soft-single", session.presets["all"], session.blocks)
    with pytest.raises(ParamsError, match="no block is on"):
        add_subset(project, "nothing", session.presets["none"], session.blocks)
    strong = {**session.presets["all"], BlockId.parse("double.0"): 1.75}
    with pytest.raises(ParamsError, match=r"less than or equal to 1\.5"):
        add_subset(project, "strong", strong, session.blocks)
    assert (project / "params.yaml").read_bytes() == before


def test_params_that_may_not_be_written_are_told_with_what_to_add(
    session: Session, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container mounts the run read-only: the line is on the page, to be copied."""
    before = (project / "params.yaml").read_bytes()
    strengths = session.presets["recommended"]

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(project))

    monkeypatch.setattr("mixer.saving.apply_overrides", refuse)
    with pytest.raises(ParamsError, match=r"Read-only file system.*Add by hand: faces: \{"):
        add_subset(project, "faces", strengths, session.blocks)
    assert (project / "params.yaml").read_bytes() == before
