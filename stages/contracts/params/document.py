"""The whole of params.yaml: read, checked, and every problem named with its line."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stages.contracts.captions import find_trigger
from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params.fields import Breach, BrokenRulesError, Section, rule
from stages.contracts.params.idle import Use, require_effect
from stages.contracts.params.intake import CaptionParams, EncodeParams, FetchParams, PrepareParams
from stages.contracts.params.lens import (
    AttributeParams,
    EvaluateParams,
    RenderParams,
    ReportParams,
    SlimParams,
    SplitParams,
)
from stages.contracts.params.review import ReviewParams
from stages.contracts.params.shared import ModelParams, PromptsParams, SamplingParams
from stages.contracts.params.training import TrainParams

SHARED_SECTIONS: Final = ("model", "sampling", "prompts", "review")
"""Sections that belong to no single stage; `review` to none at all, but to flows/review/."""


OWN_ORIGIN: Final = "data"
"""What report.origin is for a LoRA that this pipeline trains."""

_TRAINED_HERE: Final = "data/train/"


class Params(Section):
    """All of params.yaml."""

    model: ModelParams
    sampling: SamplingParams
    prompts: PromptsParams
    fetch: FetchParams
    prepare: PrepareParams
    caption: CaptionParams
    encode: EncodeParams
    train: TrainParams
    split: SplitParams
    render: RenderParams
    attribute: AttributeParams
    evaluate: EvaluateParams
    slim: SlimParams
    report: ReportParams
    review: ReviewParams

    @rule
    def _offload_recomputes(self) -> None:
        keeping = [
            f"{name}.gradient_checkpointing"
            for name, section in (("train", self.train), ("attribute", self.attribute))
            if not section.gradient_checkpointing
        ]
        if self.model.offload == "group" and keeping:
            raise ValueError(
                f"model.offload: group needs {' and '.join(keeping)}: true, or the backward pass "
                "keeps every weight on the GPU"
            )

    @rule
    def _what_is_compiled_compiles(self) -> None:
        model = self.model
        if self.render.compile and (
            model.quantisation in ("int8", "fp8") or model.offload != "none"
        ):
            raise ValueError(
                f"render.compile: true does not work with model.quantisation: {model.quantisation} "
                f"and model.offload: {model.offload}; set it to false"
            )

    @rule
    def _prompts_match_the_trigger(self) -> None:
        trigger = self.caption.trigger
        shown = self.prompts.develop + self.prompts.held_out + self.attribute.prompts
        lacking = [p for p in shown if trigger not in p]
        if lacking:
            raise ValueError(f"prompts lack the trigger {trigger!r}: {lacking}")
        if having := [p for p in self.prompts.without_trigger if trigger in p]:
            raise ValueError(f"prompts.without_trigger contain the trigger {trigger!r}: {having}")
        if having := [p for p in self.encode.class_prompts if find_trigger(p, trigger)]:
            raise ValueError(f"encode.class_prompts contain the trigger {trigger!r}: {having}")
        if find_trigger(self.encode.trigger_class, trigger):
            raise ValueError(f"encode.trigger_class is the trigger {trigger!r}; name its class")

    @rule
    def _prompts_of_shares_are_their_own(self) -> None:
        own = self.attribute.prompts
        known = {*self.prompts.develop, *self.prompts.held_out}
        if taken := [p for place, p in enumerate(own) if p in known or p in own[:place]]:
            raise ValueError(
                f"attribute.prompts has what is named already, there or in prompts: {taken}"
            )

    @rule
    def _encoded_is_what_was_prepared(self) -> None:
        if (largest := max(self.encode.sizes_px)) > self.prepare.size_px:
            raise ValueError(
                f"encode.sizes_px has {largest}, but prepare.size_px is {self.prepare.size_px}: "
                "pictures would be scaled up. Raise prepare.size_px, or drop the size"
            )
        if self.encode.flip and self.prepare.kind == "character":
            raise ValueError(
                "encode.flip mirrors faces, which prepare.kind: character does not allow: no face "
                "is symmetric, and the LoRA would learn both. Set encode.flip: false"
            )

    @rule
    def _trained_is_what_was_encoded(self) -> None:
        if self.train.output_preservation > 0 and not self.encode.without_trigger:
            raise ValueError(
                "train.output_preservation needs captions without the trigger: set "
                "encode.without_trigger: true"
            )

    @rule
    def _report_is_of_the_adapter(self) -> None:
        ours = self.split.adapter.startswith(_TRAINED_HERE)
        if ours and self.report.origin != OWN_ORIGIN:
            raise ValueError(
                f"report.origin is {self.report.origin}, but split.adapter is of this run: set "
                f"report.origin: {OWN_ORIGIN}"
            )
        if not ours and self.report.origin == OWN_ORIGIN:
            raise ValueError(
                f"report.origin is {OWN_ORIGIN}, but split.adapter is not of this run: set "
                "report.origin: data/elsewhere, or a folder with prepare/, caption/ and train/ of "
                "the run that made it"
            )

    @rule
    def _regularisation_has_pictures(self) -> None:
        marked = any(concept.regularisation for concept in self.prepare.concepts)
        there, needs = (
            marked or bool(self.encode.class_prompts),
            ("encode.class_prompts or a concept with regularisation: true in prepare.concepts"),
        )
        share, weight = self.train.regularisation_share, self.train.regularisation_weight
        require_effect(
            [
                Use("train.regularisation_share", share, there, needs),
                Use("train.regularisation_weight", weight, there, needs),
            ]
        )


def load_params(path: Path) -> Params:
    """Return the checked content of a params file.

    Raises:
        ParamsError: the file is missing, is not YAML, or holds unknown keys, misses keys, or has
            values out of range; all of them at once, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise ParamsError(f"{path} does not exist; copy one from presets/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not readable YAML: {error}") from error
    try:
        return Params.model_validate(document)
    except ValidationError as error:
        problems = [one for detail in error.errors() for one in _problems(path, root, detail)]
        raise ParamsError(f"{path} is not valid", problems) from error


def _problems(path: Path, root: yaml.Node | None, detail: Any) -> list[Problem]:
    """Return what is wrong at one place; between the values of a section it can be several."""
    error = detail.get("ctx", {}).get("error")
    if not isinstance(error, BrokenRulesError):
        return [_problem(path, root, detail)]
    return [_breach(path, root, tuple(detail["loc"]), breach) for breach in error.breaches]


def _breach(
    path: Path, root: yaml.Node | None, section: tuple[int | str, ...], breach: Breach
) -> Problem:
    keys = (*section, *(breach.key.split(".") if breach.key else ()))
    return Problem(_where(path, root, keys), breach.what, breach.remedy or _description(keys))


def _where(path: Path, root: yaml.Node | None, keys: tuple[int | str, ...]) -> str:
    name = ".".join(str(key) for key in keys) or "the file"
    return f"{path}:{_line(root, keys)} {name}"


def _problem(path: Path, root: yaml.Node | None, detail: Any) -> Problem:
    keys = tuple(detail["loc"])
    where = _where(path, root, keys)
    if detail["type"] == "extra_forbidden":
        return Problem(where, "unknown key", _suggestion(keys))
    if detail["type"] == "missing":
        return Problem(where, "missing", f"Add it: {_description(keys)}")
    message = detail["msg"].removeprefix("Value error, ")
    got = "" if isinstance(detail["input"], dict) else f", got {detail['input']!r}"
    return Problem(where, f"{message}{got}", _description(keys))


def _line(node: yaml.Node | None, keys: tuple[int | str, ...]) -> int:
    """Return the line of the deepest of `keys` that the document has."""
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == key]
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line


def _section(keys: Sequence[str]) -> type[BaseModel] | None:
    """Return the section that the last of `keys` stands in, also where sections are nested."""
    section: type[BaseModel] = Params
    for key in keys[:-1]:
        field = section.model_fields.get(key)
        nested = _models(field.annotation) if field else []
        if not nested:
            return None
        section = nested[0]
    return section


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _description(keys: tuple[int | str, ...]) -> str:
    names = [key for key in keys if isinstance(key, str)]
    section = _section(names)
    field = section.model_fields.get(names[-1]) if section and len(names) > 1 else None
    return (field.description if field else None) or "See presets/ for a complete file."


def _suggestion(keys: tuple[int | str, ...]) -> str:
    names = [key for key in keys if isinstance(key, str)]
    section = _section(names)
    known = sorted(section.model_fields) if section else []
    close = get_close_matches(names[-1], known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
