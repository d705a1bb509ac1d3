"""One model, a picture per mix."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mixer.__main__ import open_session
from mixer.actions import Session
from mixer.engine import Shot
from stages.adapters.files import read_adapter, write_adapter
from stages.adapters.strengths import with_strengths
from stages.contracts.errors import AdapterError
from stages.imaging.metrics import mse, recovery

SHOT = Shot("tok, a large robot", 3, 2)


def test_the_references_are_two_of_the_mixes(session: Session) -> None:
    """All on is `full`, all off is `none`, to the byte; the numbers say so."""
    mixer, all_on, off = session.mixer, session.presets["all"], session.presets["none"]
    full, none = mixer.render_mix(all_on, SHOT), mixer.render_mix(off, SHOT)
    assert full.references.changed
    assert np.array_equal(full.picture, full.references.full)
    assert np.array_equal(none.picture, full.references.none)
    assert (full.recovery, full.mse_full, full.blocks_on) == (1.0, 0.0, 5)
    assert full.share == pytest.approx(1.0)
    assert (none.recovery, none.mse_none, none.blocks_on, none.share) == (0.0, 0.0, 0, 0.0)
    assert none.file_bytes == 0
    assert full.mse_none == none.mse_full > 0.0
    assert full.map_none.shape == none.map_full.shape
    assert not np.array_equal(full.map_none, none.map_none)


def test_a_mix_is_between(session: Session) -> None:
    """One block off: another picture, and numbers that are those of stage evaluate."""
    first = session.blocks[0]
    strengths = {**session.presets["all"], first: 0.0}
    one = session.mixer.render_mix(strengths, SHOT)
    none, full = one.references.none, one.references.full
    assert not np.array_equal(one.picture, full)
    assert one.recovery == recovery(one.picture, none, full)
    assert (one.mse_none, one.mse_full) == (mse(one.picture, none), mse(one.picture, full))
    assert one.blocks_on == 4
    assert one.share == pytest.approx(0.7)
    half = session.mixer.render_mix({**strengths, first: 0.5}, SHOT)
    assert half.share == pytest.approx(0.85)
    assert not np.array_equal(half.picture, one.picture)
    again = session.mixer.render_mix(strengths, SHOT)
    assert np.array_equal(again.picture, one.picture)


def test_nothing_is_loaded_or_drawn_twice(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same transformer has every mix; references of a shot are kept, of many the last."""
    mixer = session.mixer
    kept = mixer.references(SHOT)
    assert mixer.references(SHOT) is kept
    before = mixer._adapted.transformer
    mixer.restack([0.5])
    assert mixer._adapted.transformer is before
    assert mixer.references(SHOT) is not kept
    monkeypatch.setattr("mixer.engine.KEPT_REFERENCES", 2)
    for seed in range(4):
        mixer.references(Shot("", seed, 1))
    assert len(mixer._references) == 2
    assert SHOT not in mixer._references


def test_prompt_seed_and_steps_change_the_picture(session: Session) -> None:
    """Each of them, a person's own prompt too."""
    shots = [SHOT, Shot("a blue star", 3, 2), Shot(SHOT.prompt, 4, 2), Shot(SHOT.prompt, 3, 3)]
    pictures = [session.mixer.references(shot).full.tobytes() for shot in shots]
    assert len(set(pictures)) == len(shots)


def test_a_stack_is_its_sum(project: Path) -> None:
    """0.6 and 0.4 of one LoRA are the whole; shares are of the LoRA of the params alone."""
    file = project / "data/train/adapter.safetensors"
    with ThreadPoolExecutor(1) as executor:
        whole = open_session(project, [], project, executor)
        wanted = whole.mixer.references(SHOT).full
        assert whole.is_of_params
        assert whole.mixer.shares is not None
        parts = open_session(project, [f"{file}=0.6", f"{file}=0.4"], project, executor)
        stacked = parts.mixer.references(SHOT).full
        assert mse(stacked, wanted) < 1.0 < mse(wanted, whole.mixer.references(SHOT).none)
        assert not parts.is_of_params
        assert parts.mixer.shares is None
        assert "recommended" not in parts.presets
        parts.mixer.restack([0.6, 0.0])
        assert mse(parts.mixer.references(SHOT).full, wanted) > 1.0
        with pytest.raises(ValueError, match="expected 2 strengths, got 1"):
            parts.mixer.restack([1.0])


def test_closing_takes_the_lora_off(session: Session) -> None:
    """The model is the base model again."""
    names = {name for name, _ in session.mixer._adapted.transformer.named_modules()}
    session.mixer.close()
    bare = {name for name, _ in session.mixer._adapted.transformer.named_modules()}
    assert any("lora_A" in name for name in names)
    assert not any("lora_A" in name for name in bare)


def test_a_part_of_the_blocks_is_a_mixer_of_those(project: Path) -> None:
    """A LoRA that lacks blocks has controls for what it has; a strength that is none is refused."""
    source = read_adapter(project / "data/train/adapter.safetensors")
    file = project / "part.safetensors"
    write_adapter(file, with_strengths(source, dict.fromkeys(source.blocks[1:3], 1.0)))
    with ThreadPoolExecutor(1) as executor:
        part = open_session(project, [str(file)], project, executor)
        assert part.blocks == source.blocks[1:3]
        assert part.presets.keys() == {"all", "none", "double only", "single only"}
        with pytest.raises(AdapterError, match=r"'much' is no strength\. Write FILE or FILE=0\.6"):
            open_session(project, [f"{file}=much"], project, executor)
