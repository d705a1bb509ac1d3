"""The page: what a person sees and clicks. Everything it shows comes from engine and choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import gradio as gr

from mixer.choices import STRONGEST, Strengths
from mixer.engine import Mixer, Shot, Tasting
from mixer.saving import add_subset, save_lora
from stages.contracts.blocks import BlockId, Stack
from stages.contracts.errors import BlocklensError, ParamsError, Problem
from stages.imaging.metrics import Picture

KEPT_TRIES: Final = 24
MOST_STEPS: Final = 100
CSS: Final = """
.gradio-container { max-width: 1280px !important; }
#strengths .form, #strengths .row { gap: 4px; }
"""
_LARGEST_SEED: Final = 2**31 - 1
_LABELS: Final[dict[Stack, str]] = {
    "double": "Double blocks",
    "single": "Single blocks",
    "base": "Input layers",
}
_ONE_AT_A_TIME: Final[dict[str, Any]] = {"concurrency_limit": 1, "concurrency_id": "model"}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Bench:
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
        """Return what the model's thread makes of a call; input at fault is shown on the page."""
        try:
            return self.executor.submit(function, *arguments).result()
        except BlocklensError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error


@dataclass(frozen=True)
class Try:
    """One picture of the history, and all that was set for it."""

    strengths: Strengths
    loras: tuple[float, ...]
    shot: Shot
    picture: Picture
    caption: str


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
        asked = [self.prompt, self.seed, self.steps, *self.loras]
        return [*asked, *self.switches.values(), *self.sliders.values()]


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


def build_page(bench: Bench) -> gr.Blocks:
    """Return the page, ready to be launched."""
    with gr.Blocks(title="Blocklens mixer", delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"## Mixer: {', '.join(part.name for part in bench.mixer.parts)}")
        with gr.Row():
            with gr.Column(scale=3):
                results = _lay_results()
            with gr.Column(scale=2):
                controls = _lay_controls(bench)
        _wire(page, bench, controls, results)
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
        elem_id="tries", columns=8, height=190, allow_preview=False, format="png", buttons=[],
    )  # fmt: skip
    return Results(*shown, *maps, numbers, gallery, gr.State([]))


def _lay_controls(bench: Bench) -> Controls:
    mixer = bench.mixer
    prompt = gr.Dropdown(
        list(dict.fromkeys(mixer.prompts)), value=mixer.prompts[0], label="Prompt, or your own",
        allow_custom_value=True, elem_id="prompt",
    )  # fmt: skip
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_LARGEST_SEED)
        steps = gr.Number(mixer.steps, label="Steps", precision=0, minimum=1, maximum=MOST_STEPS)
    loras = tuple(
        gr.Slider(0.0, STRONGEST, part.strength, step=0.01, label=f"Strength of {part.name}")
        for part in mixer.parts
    )
    switches = {
        stack: gr.CheckboxGroup(
            names, value=names, label=label, elem_id=f"on-{stack}",
        )
        for stack, label in _LABELS.items()
        if (names := [str(block) for block in mixer.blocks if block.stack == stack])
    }  # fmt: skip
    least, most = _range(bench.presets)
    with gr.Accordion("Strength of each block", open=False, elem_id="strengths"), gr.Row():
        sliders = {
            block: gr.Slider(
                least, most, 1.0, step=0.01, label=str(block), min_width=200,
                elem_id=_slider_id(block),
            )
            for block in mixer.blocks
        }  # fmt: skip
    return Controls(prompt, seed, steps, loras, switches, sliders)


def _wire(page: gr.Blocks, bench: Bench, controls: Controls, results: Results) -> None:
    inputs = [*controls.components, results.tries]
    outputs = [*controls.components, *results.components]
    mix = partial(_mix, bench)

    def recall(tries: list[Try], event: gr.SelectData) -> list[Any]:
        return _recall(bench, tries[event.index], tries)

    def listen(event: Callable[..., Any], change: Callable[..., Any]) -> None:
        event(
            change, inputs, outputs,
            show_progress="minimal", trigger_mode="always_last", api_visibility="private",
            **_ONE_AT_A_TIME,
        )  # fmt: skip

    with gr.Row():
        for name, strengths in bench.presets.items():
            button = gr.Button(
                name, size="sm", min_width=80, elem_id=f"preset-{name}".replace(" ", "-")
            )
            listen(button.click, partial(_mix_strengths, bench, strengths))
    with gr.Row():
        band = gr.Dropdown(list(bench.bands), label="Band")
        strength = gr.Slider(0.0, STRONGEST, 0.0, step=0.01, label="Strength of the band")
        button = gr.Button("Set the band", size="sm")
    button.click(
        partial(_mix_band, bench), [band, strength, *inputs], outputs,
        show_progress="minimal", api_visibility="private", **_ONE_AT_A_TIME,
    )  # fmt: skip
    again = gr.Button("Mix", variant="primary", elem_id="again")
    for event in [again.click, page.load, controls.prompt.input, controls.seed.submit,
                  controls.steps.submit, *(slider.release for slider in controls.loras),
                  *(group.input for group in controls.switches.values())]:  # fmt: skip
        listen(event, mix)
    for block, slider in controls.sliders.items():
        listen(slider.release, partial(_mix_slider, bench, block))
    results.gallery.select(
        recall, [results.tries], outputs, show_progress="minimal",
        api_visibility="private", **_ONE_AT_A_TIME,
    )  # fmt: skip
    _wire_saving(bench, controls)


def _wire_saving(bench: Bench, controls: Controls) -> None:
    with gr.Row():
        name = gr.Textbox(label="Name of this mix", placeholder="faces", elem_id="name")
        save = gr.Button("Save as LoRA", elem_id="save")
        add = gr.Button("Add to params", elem_id="add")
    said = gr.Markdown(elem_id="said")
    for button, act in ((save, _save), (add, _add)):
        button.click(
            partial(act, bench), [name, *controls.components], said,
            api_visibility="private", **_ONE_AT_A_TIME,
        )  # fmt: skip


def _read(bench: Bench, values: Sequence[Any]) -> Setting:
    """Return the controls' values; a field that is empty or beyond its range is refused."""
    prompt, seed, steps, *others = values
    problems = [
        Problem(label, f"{value!r} is no whole number from {least} to {most}", "Change it.")
        for label, value, least, most in (
            ("seed", seed, 0, _LARGEST_SEED), ("steps", steps, 1, MOST_STEPS),
        )
        if not isinstance(value, int | float) or value != int(value) or not least <= value <= most
    ]  # fmt: skip
    if problems:
        error = ParamsError("The picture cannot be made", problems)
        raise gr.Error(str(error), print_exception=False)
    count, blocks = len(bench.mixer.parts), bench.blocks
    loras, sliders = others[:count], others[len(others) - len(blocks) :]
    on = {
        BlockId.parse(name) for names in others[count : len(others) - len(blocks)] for name in names
    }
    shot = Shot(str(prompt or ""), int(seed), int(steps))
    return Setting(
        shot, tuple(map(float, loras)), frozenset(on), dict(zip(blocks, sliders, strict=True))
    )


def _mix(bench: Bench, *values: Any) -> list[Any]:
    *given, tries = values
    setting = _read(bench, given)
    return _show(bench, setting.shot, setting.loras, setting.strengths, setting.sliders, tries)


def _mix_slider(bench: Bench, block: BlockId, *values: Any) -> list[Any]:
    """Let a block whose slider was moved be on, whatever its switch said."""
    *given, tries = values
    setting = _read(bench, given)
    strengths = {**setting.strengths, block: setting.sliders[block]}
    return _show(bench, setting.shot, setting.loras, strengths, setting.sliders, tries)


def _mix_strengths(bench: Bench, strengths: Strengths, *values: Any) -> list[Any]:
    *given, tries = values
    setting = _read(bench, given)
    return _show(bench, setting.shot, setting.loras, strengths, setting.sliders, tries)


def _mix_band(bench: Bench, band: str | None, strength: float, *values: Any) -> list[Any]:
    *given, tries = values
    setting = _read(bench, given)
    members = bench.bands.get(band or "", ())
    strengths = {**setting.strengths, **dict.fromkeys(members, float(strength))}
    return _show(bench, setting.shot, setting.loras, strengths, setting.sliders, tries)


def _recall(bench: Bench, one: Try, tries: list[Try]) -> list[Any]:
    sliders = dict.fromkeys(bench.blocks, 1.0)
    return _show(bench, one.shot, one.loras, one.strengths, sliders, tries, again=True)


def _show(
    bench: Bench,
    shot: Shot,
    loras: tuple[float, ...],
    strengths: Strengths,
    sliders: dict[BlockId, float],
    tries: list[Try],
    again: bool = False,
) -> list[Any]:
    """Return the values of all controls and results for a mix."""
    tasting = bench.run(_taste, bench.mixer, loras, strengths, shot)
    if not again:
        caption = f"{_on(tasting, bench)}, {_recovery(tasting)}"
        tries = [Try(strengths, loras, shot, tasting.picture, caption), *tries][:KEPT_TRIES]
    stacks = [stack for stack in _LABELS if any(block.stack == stack for block in bench.blocks)]
    on = [[str(b) for b in bench.blocks if b.stack == stack and strengths[b]] for stack in stacks]
    values = [strengths[block] or sliders[block] for block in bench.blocks]
    pictures = [tasting.references.none, tasting.picture, tasting.references.full]
    gallery = [(one.picture, one.caption) for one in tries]
    return [
        *(shot.prompt, shot.seed, shot.steps), *loras, *on, *values,
        *pictures, tasting.map_none, tasting.map_full, _numbers(tasting, bench), gallery, tries,
    ]  # fmt: skip


def _taste(mixer: Mixer, loras: Sequence[float], strengths: Strengths, shot: Shot) -> Tasting:
    mixer.restack(loras)
    return mixer.taste(strengths, shot)


def _save(bench: Bench, name: str, *values: Any) -> str:
    setting = _read(bench, values)

    def save() -> Path:
        bench.mixer.restack(setting.loras)
        return save_lora(bench.mixer.parts, bench.files, setting.strengths, bench.out, name)

    path = bench.run(save)
    return f"Saved {path} ({path.stat().st_size / 1e6:.1f} MB)."


def _add(bench: Bench, name: str, *values: Any) -> str:
    setting = _read(bench, values)
    if not bench.is_of_params or setting.loras != (1.0,):
        raise gr.Error(
            "params.yaml is about the LoRA of split.adapter at strength 1. Save this mix as a LoRA "
            "and set split.adapter to the file.",
            print_exception=False,
        )
    line = bench.run(add_subset, bench.root, name, setting.strengths, bench.blocks)
    return f"Added to render.subsets in params.yaml: `{line}`. `dvc repro` renders it."


def _numbers(tasting: Tasting, bench: Bench) -> str:
    share = "not known" if tasting.share is None else f"{tasting.share:.1%}"
    return (
        "| blocks on | recovery | share of what is on | MSE to full | MSE to none | file |\n"
        "|---|---|---|---|---|---|\n"
        f"| {_on(tasting, bench)} | {_recovery(tasting)} | {share} | {tasting.mse_full:.1f} "
        f"| {tasting.mse_none:.1f} | {tasting.file_bytes / 1e6:.2f} MB |"
    )


def _on(tasting: Tasting, bench: Bench) -> str:
    return f"{tasting.blocks_on} of {len(bench.blocks)}"


def _recovery(tasting: Tasting) -> str:
    return "no effect" if tasting.recovery is None else f"{tasting.recovery:.1%}"


def _range(presets: dict[str, Strengths]) -> tuple[float, float]:
    """Return the sliders' ends: 0 and 1.5, or wider where a preset goes beyond."""
    every = [value for strengths in presets.values() for value in strengths.values()]
    return min(0.0, *every), max(STRONGEST, *every)


def _slider_id(block: BlockId) -> str:
    return f"strength-{block}".replace(".", "-")
