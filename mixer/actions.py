"""What a click does: from the controls' values to a mix, and to the values of the whole page.

The values are those of the prompt, the seed, the steps, the strength of each LoRA, the blocks that
are on in each stack, and the strength of each block, in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from PIL import Image

from mixer.choices import Strengths
from mixer.engine import Mixer, MixResult, Shot
from mixer.saving import add_subset, save_lora
from stages.contracts.blocks import BlockId, Stack
from stages.contracts.errors import ParamsError, Problem
from stages.imaging.metrics import Picture

KEPT_TRIES: Final = 24
MOST_STEPS: Final = 100
_THUMBNAIL_PX: Final = 192
LARGEST_SEED: Final = 2**31 - 1
STACKS: Final[tuple[Stack, ...]] = ("double", "single", "base")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Session:
    """The mixer and where it is used.

    `executor` has one thread, which alone runs the model. `files` are the LoRAs of the stack.
    `root` has params.yaml, whose LoRA the stack is if `is_of_params`; mixes are saved in `out`.
    """

    mixer: Mixer
    executor: Executor
    files: tuple[Path, ...]
    root: Path
    out: Path
    is_of_params: bool
    bands: dict[str, tuple[BlockId, ...]]
    presets: dict[str, Strengths]

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """The blocks of the stack, in model order."""
        return self.mixer.blocks

    def run(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Return what the model's thread makes of a call."""
        return self.executor.submit(function, *arguments).result()


@dataclass(frozen=True)
class Try:
    """One picture of the history, and all that was set for it."""

    strengths: Strengths
    loras: tuple[float, ...]
    shot: Shot
    thumbnail: Picture
    caption: str


@dataclass(frozen=True)
class Setting:
    """The values of the controls."""

    shot: Shot
    loras: tuple[float, ...]
    on: frozenset[BlockId]
    sliders: dict[BlockId, float]

    @property
    def strengths(self) -> dict[BlockId, float]:
        """The strength of each block; one that is switched on at 0 is at 1."""
        return {
            block: (value or 1.0) if block in self.on else 0.0
            for block, value in self.sliders.items()
        }


def read(session: Session, values: Sequence[Any]) -> Setting:
    """Return the controls' values.

    Raises:
        ParamsError: a field is empty or beyond its range.
    """
    prompt, seed, steps, *others = values
    problems = [
        Problem(label, f"{value!r} is no whole number from {least} to {most}", "Change it.")
        for label, value, least, most in (
            ("seed", seed, 0, LARGEST_SEED), ("steps", steps, 1, MOST_STEPS),
        )
        if not isinstance(value, int | float) or value != int(value) or not least <= value <= most
    ]  # fmt: skip
    if problems:
        raise ParamsError("The picture cannot be made", problems)
    count, blocks = len(session.mixer.parts), session.blocks
    loras, sliders = others[:count], others[len(others) - len(blocks) :]
    on = {
        BlockId.parse(name) for names in others[count : len(others) - len(blocks)] for name in names
    }
    shot = Shot(str(prompt or ""), int(seed), int(steps))
    return Setting(
        shot, tuple(map(float, loras)), frozenset(on), dict(zip(blocks, sliders, strict=True))
    )


def switched(blocks: Sequence[BlockId], on: Sequence[str], *values: float) -> list[float]:
    """Return the sliders after a switch: a block that is on at 0 goes to 1."""
    return [
        1.0 if str(block) in on and value == 0.0 else value
        for block, value in zip(blocks, values, strict=True)
    ]


def moved(session: Session, block: BlockId, value: float, on: Sequence[str]) -> list[str]:
    """Return a stack's switches after a block's slider: on, or at 0 off."""
    names = [str(each) for each in session.blocks if each.stack == block.stack]
    wanted = {*on, str(block)} if value != 0.0 else {*on} - {str(block)}
    return [name for name in names if name in wanted]


def chosen(session: Session, strengths: Strengths, *sliders: float) -> list[Any]:
    """Return switches and sliders for strengths; the slider of a block that is off stays."""
    stacks = [stack for stack in STACKS if any(block.stack == stack for block in session.blocks)]
    on = [[str(b) for b in session.blocks if b.stack == stack and strengths[b]] for stack in stacks]
    before = dict(zip(session.blocks, sliders, strict=True))
    return [*on, *(strengths[block] or before[block] for block in session.blocks)]


def banded(session: Session, band: str | None, strength: float, *values: Any) -> list[Any]:
    """Return switches and sliders with all blocks of a band at `strength`."""
    setting = read(session, values)
    members = session.bands.get(band or "", ())
    strengths = {**setting.strengths, **dict.fromkeys(members, float(strength))}
    return chosen(session, strengths, *setting.sliders.values())


def recalled(session: Session, one: Try) -> list[Any]:
    """Return the values of all controls as they were for a try; what was off goes on at 1."""
    asked = [one.shot.prompt, one.shot.seed, one.shot.steps, *one.loras]
    return [*asked, *chosen(session, one.strengths, *[1.0] * len(session.blocks))]


def mix(session: Session, *values: Any) -> list[Any]:
    """Return the five pictures of the controls' mix, its numbers, and the tries twice.

    Once as the gallery's pictures and captions, once as they are. What was tried before is not
    added again.

    Raises:
        ParamsError: a field is empty or beyond its range.
        AdapterError: the LoRAs cannot have these strengths.
    """
    *given, tries = values
    setting = read(session, given)
    shot, loras, strengths = setting.shot, setting.loras, setting.strengths
    result = session.run(_render_mix, session.mixer, loras, strengths, shot)
    if (shot, loras, strengths) not in [(one.shot, one.loras, one.strengths) for one in tries]:
        caption = f"{_on(result, session)}, {_recovery(result)}"
        tries = [Try(strengths, loras, shot, _thumbnail(result.picture), caption), *tries][
            :KEPT_TRIES
        ]
    pictures = [result.references.none, result.picture, result.references.full]
    gallery = [(one.thumbnail, one.caption) for one in tries]
    maps = [result.map_none, result.map_full]
    return [*pictures, *maps, _numbers(result, session), gallery, tries]


def _render_mix(
    mixer: Mixer, loras: Sequence[float], strengths: Strengths, shot: Shot
) -> MixResult:
    mixer.restack(loras)
    return mixer.render_mix(strengths, shot)


def save(session: Session, name: str, *values: Any) -> str:
    """Save the mix as a LoRA file and return what to say; raises as `save_lora`."""
    setting = read(session, values)

    def save() -> Path:
        session.mixer.restack(setting.loras)
        return save_lora(session.mixer.parts, session.files, setting.strengths, session.out, name)

    path = session.run(save)
    said = f"Saved {path} ({path.stat().st_size / 1e6:.1f} MB)."
    if parted := [
        part.name for part in session.mixer.parts if part.adapter.apart and part.strength
    ]:
        said += f" Without the weights for text encoders of {', '.join(parted)}."
    return said


def add(session: Session, name: str, *values: Any) -> str:
    """Add the mix to params.yaml and return what to say.

    Raises:
        ParamsError: the mix is not of the params' LoRA at strength 1, or see `add_subset`.
    """
    setting = read(session, values)
    if not session.is_of_params or setting.loras != (1.0,):
        problem = Problem(
            "render.subsets",
            "is about the LoRA of split.adapter at strength 1",
            "Save this mix as a LoRA and set split.adapter to the file.",
        )
        raise ParamsError("The mix cannot be added to params.yaml", [problem])
    line = session.run(add_subset, session.root, name, setting.strengths, session.blocks)
    return f"Added to render.subsets in params.yaml: `{line}`. `dvc repro` renders it."


def _thumbnail(picture: Picture) -> Picture:
    """Return the picture in the size of the gallery, which is sent anew with every click."""
    small = Image.fromarray(picture)
    small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return np.asarray(small)


def _numbers(result: MixResult, session: Session) -> str:
    share = "not known" if result.share is None else f"{result.share:.1%}"
    return (
        "| blocks on | recovery | share of what is on | MSE to full | MSE to none | file |\n"
        "|---|---|---|---|---|---|\n"
        f"| {_on(result, session)} | {_recovery(result)} | {share} | {result.mse_full:.1f} "
        f"| {result.mse_none:.1f} | {result.file_bytes / 1e6:.2f} MB |"
    )


def _on(result: MixResult, session: Session) -> str:
    return f"{result.blocks_on} of {len(session.blocks)}"


def _recovery(result: MixResult) -> str:
    return "no effect" if result.recovery is None else f"{result.recovery:.1%}"
