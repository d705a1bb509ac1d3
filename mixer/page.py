"""The page: what a person sees and clicks. What a click does is in actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import gradio as gr

from mixer import actions
from mixer.actions import Session, Try
from mixer.choices import STRONGEST, Strengths
from stages.adapters.stacking import Part
from stages.contracts.blocks import BlockId, Stack
from stages.contracts.errors import BlocklensError

CSS: Final = """
.gradio-container { max-width: 1280px !important; }
#on-double label, #on-single label { padding: 2px 8px; min-width: 56px; }
#none img, #mix img, #full img { width: 100%; height: 100%; object-fit: contain; }
"""
_LABELS: Final = ("Double blocks", "Single blocks", "Input layers")
_MODEL: Final[dict[str, Any]] = {
    "concurrency_limit": 1,
    "concurrency_id": "model",
    "api_visibility": "private",
}
_AT_ONCE: Final[dict[str, Any]] = {
    "queue": False,
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""What needs no model."""


@dataclass(frozen=True)
class Controls:
    """What a person sets: the inputs of every click, in the order of `components`."""

    prompt: gr.Dropdown
    seed: gr.Number
    steps: gr.Number
    loras: tuple[gr.Slider, ...]
    switches: dict[Stack, gr.CheckboxGroup]
    sliders: dict[BlockId, gr.Slider]

    @property
    def components(self) -> list[gr.components.Component]:
        """All of them, in one order."""
        return [self.prompt, self.seed, self.steps, *self.loras, *self.of_blocks]

    @property
    def of_blocks(self) -> list[gr.components.Component]:
        """The switches and the sliders."""
        return [*self.switches.values(), *self.sliders.values()]


@dataclass(frozen=True)
class Results:
    """What a click fills, in the order of `components`."""

    none: gr.Image
    picture: gr.Image
    full: gr.Image
    map_none: gr.Image
    map_full: gr.Image
    numbers: gr.Markdown
    gallery: gr.Gallery
    tries: gr.State

    @property
    def components(self) -> list[gr.components.Component]:
        """All of them, in one order."""
        pictures = [self.none, self.picture, self.full, self.map_none, self.map_full]
        return [*pictures, self.numbers, self.gallery, self.tries]


def build_page(session: Session) -> gr.Blocks:
    """Return the page, ready to be launched."""
    page = gr.Blocks(title="Blocklens mixer", delete_cache=(3600, 3600))
    with page:
        gr.Markdown(f"## Mixer: {', '.join(_short(part) for part in session.mixer.parts)}")
        with gr.Row():
            with gr.Column(scale=3):
                results = _lay_results()
            with gr.Column(scale=2):
                controls = _lay_controls(session)
                _wire(page, session, controls, results)
    return page


def _lay_results() -> Results:
    def picture(label: str, name: str) -> gr.Image:
        return gr.Image(
            label=label, elem_id=name, format="png", interactive=False, buttons=["download"],
            height=256, alt_text=label,
        )  # fmt: skip

    with gr.Row():
        shown = [
            picture("none: without the LoRA", "none"),
            picture("this mix", "mix"),
            picture("full: all blocks", "full"),
        ]
    with gr.Row():
        maps = [
            picture("what the mix does (against none)", "map-none"),
            picture("what it lacks (against full)", "map-full"),
        ]
    numbers = gr.Markdown(elem_id="numbers")
    gallery = gr.Gallery(
        label="Tries, the newest first: click one to have its settings back",
        elem_id="tries", columns=6, height=190, fit_columns=False,
        allow_preview=False, format="png", buttons=[],
    )  # fmt: skip
    none, mix, full = shown
    map_none, map_full = maps
    return Results(none, mix, full, map_none, map_full, numbers, gallery, gr.State([]))


def _lay_controls(session: Session) -> Controls:
    mixer = session.mixer
    prompt = gr.Dropdown(
        list(dict.fromkeys(mixer.prompts)), value=mixer.prompts[0], label="Prompt, or your own",
        allow_custom_value=True, elem_id="prompt",
    )  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=actions.LARGEST_SEED)
        steps = gr.Number(
            mixer.steps, label="Steps", precision=0, minimum=1, maximum=actions.MOST_STEPS
        )
    loras = tuple(
        gr.Slider(0.0, STRONGEST, part.strength, step=0.01, label=f"Strength of {_short(part)}")
        for part in mixer.parts
    )
    switches = {
        stack: gr.CheckboxGroup(
            [(name.rpartition(".")[2], name) for name in names],
            value=names, label=label, elem_id=f"on-{stack}",
        )
        for stack, label in zip(actions.STACKS, _LABELS, strict=True)
        if (names := [str(block) for block in mixer.blocks if block.stack == stack])
    }  # fmt: skip
    least, most = _range(session.presets)
    with gr.Accordion("Strength of each block", open=False, elem_id="strengths"), gr.Row():
        sliders = {
            block: gr.Slider(
                least, most, 1.0, step=0.01, label=str(block), min_width=200,
                elem_id=_slider_id(block),
            )
            for block in mixer.blocks
        }  # fmt: skip
    return Controls(prompt, seed, steps, loras, switches, sliders)


def _wire(page: gr.Blocks, session: Session, controls: Controls, results: Results) -> None:
    """Let every click set the controls at once, and then draw what they say.

    Were the controls set by what draws, a second click in that time would be undone.
    """
    inputs = [*controls.components, results.tries]
    draw: dict[str, Any] = {
        "fn": _told(actions.mix, session), "inputs": inputs, "outputs": results.components,
        "show_progress": "minimal", "trigger_mode": "always_last", **_MODEL,
    }  # fmt: skip
    sliders, chosen = [*controls.sliders.values()], controls.of_blocks
    switched = moving_only(len(sliders), partial(actions.switched, session.blocks))
    for group in controls.switches.values():
        group.input(switched, [group, *sliders], sliders, **_AT_ONCE).then(**draw)
    for block, slider in controls.sliders.items():
        group = controls.switches[block.stack]
        moved = partial(actions.moved, session, block)
        slider.release(moved, [slider, group], group, **_AT_ONCE).then(**draw)
    with gr.Row():
        for name, strengths in session.presets.items():
            identity = f"preset-{name}".replace(" ", "-")
            button = gr.Button(name, size="sm", min_width=80, elem_id=identity)
            choose = moving_only(len(sliders), partial(actions.chosen, session, strengths))
            button.click(choose, sliders, chosen, **_AT_ONCE).then(**draw)
    with gr.Row():
        band = gr.Dropdown(list(session.bands), label="Band")
        strength = gr.Slider(0.0, STRONGEST, 0.0, step=0.01, label="Strength of the band")
        button = gr.Button("Set the band", size="sm", elem_id="set-band")
    banded = moving_only(len(sliders), _told(actions.banded, session))
    given = [band, strength, *controls.components]
    button.click(banded, given, chosen, **_AT_ONCE).then(**draw)

    def recalled(tries: list[Try], event: gr.SelectData) -> list[Any]:
        return actions.recalled(session, tries[event.index])

    results.gallery.select(
        recalled, [results.tries], controls.components, **_AT_ONCE
    ).then(**draw)  # fmt: skip
    again = gr.Button("Mix", variant="primary", elem_id="again")
    for event in [again.click, page.load, controls.prompt.input, controls.seed.submit,
                  controls.steps.submit, *(each.release for each in controls.loras)]:  # fmt: skip
        event(**draw)
    _wire_saving(session, controls)


def _wire_saving(session: Session, controls: Controls) -> None:
    with gr.Row():
        name = gr.Textbox(label="Name of this mix", placeholder="faces", elem_id="name")
        save = gr.Button("Save as LoRA", elem_id="save")
        add = gr.Button("Add to params", elem_id="add")
    said = gr.Markdown(elem_id="said")
    for button, act in ((save, actions.save), (add, actions.add)):
        button.click(
            _told(act, session), [name, *controls.components], said,
            **_MODEL,
        )  # fmt: skip


def moving_only(count: int, function: Callable[..., Sequence[Any]]) -> Callable[..., list[Any]]:
    """Return the function with `skip` for sliders that stay where they are.

    The last `count` of its arguments and of its results are the sliders' values. The browser takes
    a moment to set each of 58.
    """

    def call(*values: Any) -> list[Any]:
        results = function(*values)
        split = len(results) - count
        before = values[len(values) - count :]
        pairs = zip(before, results[split:], strict=True)
        return [*results[:split], *(gr.skip() if old == new else new for old, new in pairs)]

    return call


def _told(function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """Return the function with its first arguments; what it refuses is shown on the page."""

    def call(*others: Any) -> Any:
        try:
            return function(*first, *others)
        except BlocklensError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return call


def _range(presets: dict[str, Strengths]) -> tuple[float, float]:
    """Return the sliders' ends: 0 and 1.5, or wider where a preset goes beyond."""
    every = [value for strengths in presets.values() for value in strengths.values()]
    return min(0.0, *every), max(STRONGEST, *every)


def _short(part: Part) -> str:
    """Return the end of a file's path, for a label."""
    return "/".join(Path(part.name).parts[-2:])


def _slider_id(block: BlockId) -> str:
    return f"strength-{block}".replace(".", "-")
