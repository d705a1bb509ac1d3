"""What a click does, without a browser."""

from __future__ import annotations

from typing import Any

import pytest

from mixer import actions
from mixer.actions import Session
from stages.contracts.blocks import BlockId
from stages.contracts.errors import ParamsError

ON = [["double.0", "double.1"], ["single.0", "single.1", "single.2"]]


def values(
    *, seed: Any = 0, steps: Any = 1, lora: float = 1.0, sliders: Any = (1.0,) * 5
) -> list[Any]:
    """Return what the page sends: everything is on unless told otherwise."""
    return ["tok", seed, steps, lora, *ON, *sliders]


def test_switches_and_sliders_agree(session: Session) -> None:
    """A block that is switched on has a strength; one that is pulled to 0 is off."""
    first = BlockId.parse("double.0")
    assert actions.switched(session.blocks, ["double.0"], 0.0, 0.0, 0.5, 1.0, 1.0) == [
        1.0,
        0.0,
        0.5,
        1.0,
        1.0,
    ]
    assert actions.moved(session, first, 0.4, ["double.1"]) == ["double.0", "double.1"]
    assert actions.moved(session, first, 0.0, ["double.0", "double.1"]) == ["double.1"]
    chosen = actions.chosen(session, session.presets["recommended"], 1.0, 1.0, 0.3, 1.0, 1.0)
    assert chosen == [["double.1"], ["single.1", "single.2"], 1.0, 1.2, 0.3, 1.0, 0.75]


def test_a_band_is_set_at_once(session: Session) -> None:
    """To a strength, or off; the other blocks stay."""
    half = actions.banded(session, "single", 0.5, *values(sliders=(0.8, 1.0, 1.0, 1.0, 1.0)))
    assert half == [*ON, 0.8, 1.0, 0.5, 0.5, 0.5]
    off = actions.banded(session, "double", 0.0, *values())
    assert off[:2] == [[], ON[1]]
    assert actions.banded(session, None, 0.0, *values())[:2] == ON


def test_a_try_is_kept_once_and_comes_back(session: Session) -> None:
    """With all that was set for it; the history is not endless."""
    *_, first = actions.mix(session, *values(), [])
    *_, gallery, second = actions.mix(session, *values(seed=1), first)
    assert [one.shot.seed for one in second] == [1, 0]
    assert [caption for _, caption in gallery] == ["5 of 5, 100.0%"] * 2
    *_, third = actions.mix(session, *values(), second)
    assert third == second
    assert actions.recalled(session, second[1]) == values()
    *_, full = actions.mix(session, *values(seed=2), second * actions.KEPT_TRIES)
    assert len(full) == actions.KEPT_TRIES


def test_fields_out_of_range_are_named(session: Session) -> None:
    """Both in one message, nothing is drawn."""
    with pytest.raises(ParamsError) as caught:
        actions.mix(session, *values(seed=None, steps=0), [])
    assert "seed: None is no whole number from 0 to 2147483647" in str(caught.value)
    assert "steps: 0 is no whole number from 1 to 100" in str(caught.value)


def test_params_are_about_their_own_lora(session: Session) -> None:
    """At another strength, a subset in params.yaml would be another picture."""
    assert actions.add(session, "faces", *values()).startswith("Added to render.subsets")
    with pytest.raises(ParamsError, match=r"is about the LoRA of split\.adapter at strength 1"):
        actions.add(session, "others", *values(lora=0.5))
