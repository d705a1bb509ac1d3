"""The typed form of params.yaml: every value, its range and one sentence on what it does.

One section per stage, named like the stage, and three shared ones: `model` (how the base model
is run), `sampling` (how a picture is made) and `prompts` (what the lens looks at). There are no
defaults in code: a missing key is an error, and so is an unknown one.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stages.contracts.captions import unreadable_signs
from stages.contracts.errors import ParamsError, Problem

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Sigma = Annotated[float, Field(gt=0.0, lt=1.0)]
Text = Annotated[str, Field(min_length=1)]
CommitHash = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Channel = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]

_FLORENCE_TASKS: Final = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_UNASKED: Final = frozenset({"sidecar", "template", "blip", "wd14"})

SHARED_SECTIONS: Final = ("model", "sampling", "prompts")
"""Sections that belong to no single stage."""


class Section(BaseModel):
    """A part of params.yaml: frozen, no unknown keys, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ModelParams(Section):
    """How the base model is run, in training and in every picture alike."""

    precision: Literal["float32", "bfloat16"] = Field(
        description="Number format of the base model; the adapter itself is always float32."
    )
    text_tokens: Annotated[int, Field(ge=8, le=512)] = Field(
        description="Length, in T5 tokens, that every prompt is padded or cut to (FLUX.1-dev: 512)."
    )


class SamplingParams(Section):
    """How a picture is made: the same for samples, lens and slim check."""

    size_px: Side = Field(description="Side of the square pictures that are generated, in pixels.")
    steps: Annotated[int, Field(ge=1, le=200)] = Field(description="Euler steps per picture.")
    guidance: Annotated[float, Field(ge=0.0, le=30.0)] = Field(
        description="Value given to the guidance embedding (FLUX.1-dev: 3.5)."
    )
    batch: Positive = Field(
        description="Pictures in one forward pass; fixed, so that no picture depends on others."
    )


class PromptsParams(Section):
    """What the lens looks at. Development prompts choose; held-out ones only confirm."""

    develop: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Prompts with the trigger, for render, attribute and the choice of blocks."
    )
    held_out: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Prompts with the trigger that take no part in any choice."
    )
    without_trigger: list[Text] = Field(
        description="Prompts without the trigger, to measure how far the LoRA bleeds."
    )
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Noise seeds of the development pictures."
    )
    held_out_seeds: Annotated[list[Seed], Field(min_length=1)] = Field(
        description="Noise seeds of the held-out pictures; none may be in `seeds`."
    )

    @model_validator(mode="after")
    def _held_out_means_held_out(self) -> Self:
        if shared := set(self.develop) & set(self.held_out):
            raise ValueError(f"prompts both in develop and held_out: {sorted(shared)}")
        if shared_seeds := set(self.seeds) & set(self.held_out_seeds):
            raise ValueError(f"seeds both in seeds and held_out_seeds: {sorted(shared_seeds)}")
        return self


class FetchParams(Section):
    """Where the base weights come from."""

    folder: Text = Field(
        description="Folder with the base weights; with a repository, where extra files may lie."
    )
    repository: Text | None = Field(
        description="Hugging Face repository such as black-forest-labs/FLUX.1-dev, or null."
    )
    revision: CommitHash | None = Field(
        description="Commit hash of the repository (40 hexadecimal digits); branches move."
    )

    @model_validator(mode="after")
    def _repository_is_pinned(self) -> Self:
        _check_pinned(self.repository, self.revision)
        return self


class ConceptParams(Section):
    """What is special about one sub-folder of `prepare.images`."""

    folder: Annotated[str, Field(pattern=r"^[^/\\]+$")] = Field(description="Its name.")
    repeats: Positive = Field(description="How often each of its pictures is used in an epoch.")
    regularisation: bool = Field(
        description="Pictures of what the LoRA must leave alone: captions without the trigger."
    )


class PrepareParams(Section):
    """From raw pictures to checked ones of one size."""

    images: Text = Field(
        description="Folder with the training pictures and their captions; sub-folders are "
        "concepts."
    )
    validation_images: Text = Field(
        description="Folder with pictures that are never trained on, only measured; the same as "
        "`images` where validation_share takes them from there."
    )
    validation_share: Annotated[float, Field(ge=0.0, le=0.5)] = Field(
        description="Share of the pictures in `images` that is held out, by the hash of their "
        "content; 0 takes the folder validation_images instead."
    )
    concepts: list[ConceptParams] = Field(
        description="List of {folder, repeats, regularisation}; sub-folders that are not listed "
        "have repeats 1 and no regularisation."
    )
    kind: Literal["style", "character", "object", "complex-style"] = Field(
        description="What the LoRA is of; decides how many pictures are too few or too many."
    )
    on_invalid: Literal["fail", "skip"] = Field(
        description="fail: a file that cannot be used stops the stage; skip: it is listed in the "
        "manifest and left out."
    )
    size_px: Side = Field(
        description="Side of the prepared square pictures, in pixels; buckets have its area."
    )
    fit: Literal["crop", "pad", "bucket"] = Field(
        description="crop: a square; pad: whole picture on the background colour; bucket: the "
        "nearest shape of equal area with sides in multiples of 64."
    )
    focus: Literal["centre", "saliency"] = Field(
        description="Where crop and bucket cut: around the middle, or around what stands out."
    )
    background: Annotated[list[Channel], Field(min_length=3, max_length=3)] = Field(
        description="RGB colour under transparent pixels and around padded pictures, 0-255."
    )
    min_side_px: Positive = Field(description="Pictures with a shorter side than this are refused.")
    max_pixels: Positive = Field(
        description="Pictures with more pixels than this are refused before they are decoded."
    )
    max_aspect: Annotated[float, Field(ge=1.0)] = Field(
        description="Longest side over shortest side above which a picture is refused."
    )
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] = Field(
        description="Pictures whose 64-bit perceptual hashes differ in at most so many bits are "
        "reported as near duplicates."
    )
    similar_bits: Annotated[int, Field(ge=0, le=64)] = Field(
        description="Pictures whose hashes differ in at most so many bits count as near one "
        "another for low_variety_share."
    )
    low_variety_share: Fraction = Field(
        description="Share of all pairs of training pictures that are near one another from "
        "which on the set is reported as of low variety."
    )
    blur_below: Annotated[float, Field(ge=0.0)] = Field(
        description="Variance of the Laplacian (grey 0-255, prepared picture) under which a "
        "picture is reported as blurred."
    )
    black_below: Channel = Field(
        description="Grey level that 99 of 100 pixels of a picture reported as near-black are "
        "under."
    )
    uniform_below: Annotated[float, Field(ge=0.0)] = Field(
        description="Standard deviation, in grey levels, under which all three channels of a "
        "picture reported as near-uniform stay."
    )
    upscale_above: Annotated[float, Field(ge=1.0)] = Field(
        description="Factor of enlargement above which it is reported as strong."
    )
    bars_above: Fraction = Field(
        description="Share of height or width above which bars of one colour at opposite edges "
        "(letterbox, frame) are reported."
    )

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        same = Path(self.images) == Path(self.validation_images)
        if same != (self.validation_share > 0):
            raise ValueError(
                f"validation_share is {self.validation_share:g}, so validation_images must "
                + ("be another folder than images" if same else "be the same folder as images")
            )
        return self

    @model_validator(mode="after")
    def _concepts_once(self) -> Self:
        folders = [concept.folder for concept in self.concepts]
        if twice := sorted({name for name in folders if folders.count(name) > 1}):
            raise ValueError(f"concepts listed more than once: {twice}")
        return self

    @model_validator(mode="after")
    def _buckets_have_a_square(self) -> Self:
        if self.fit == "bucket" and self.size_px % 64:
            raise ValueError(f"size_px ({self.size_px}) must be a multiple of 64 for fit: bucket")
        return self


class CaptionParams(Section):
    """One caption per picture, the trigger first."""

    trigger: Annotated[str, Field(pattern=r"^\S+$")] = Field(
        description="The word that calls the concept; one word, no spaces, unknown to the model."
    )
    captioner: Literal["sidecar", "template", "blip", "blip2", "florence2", "qwen-vl", "wd14"] = (
        Field(description="Kind of captioner for pictures that you wrote none for; sidecar: none.")
    )
    folder: Text = Field(
        description="Folder of the captioner's weights; with a repository, any folder to watch."
    )
    repository: Text | None = Field(
        description="Hugging Face repository of the captioner, or null to load it from `folder`."
    )
    revision: CommitHash | None = Field(
        description="Commit hash of the captioner's repository (40 hexadecimal digits)."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        description="Number format of the captioner; bfloat16 halves its memory."
    )
    max_new_tokens: Positive = Field(description="Longest caption the captioner may write.")
    instruction: str = Field(
        description="What the captioner is asked: a sentence for qwen-vl, a task for florence2, "
        "opening words or nothing for blip2; empty for the others."
    )
    subject: str = Field(description="What the pictures show, where the template says {subject}.")
    template: str = Field(
        description="Caption of the template captioner, with {subject} and {concept} (the "
        "sub-folder's name); empty for the others."
    )
    prefix: str = Field(description="Words between the trigger and a generated caption, or empty.")
    suffix: str = Field(description="Words after a generated caption, or empty.")
    tag_threshold: Fraction = Field(description="Chance above which wd14 says a general tag.")
    character_threshold: Fraction = Field(
        description="Chance above which wd14 says a character's name."
    )

    @model_validator(mode="after")
    def _repository_is_pinned(self) -> Self:
        _check_pinned(self.repository, self.revision)
        return self

    @model_validator(mode="after")
    def _captioner_is_asked_its_way(self) -> Self:
        if self.captioner == "qwen-vl" and not self.instruction.strip():
            raise ValueError("qwen-vl needs an instruction; see docs/captioners.md")
        if self.captioner == "florence2" and self.instruction not in _FLORENCE_TASKS:
            raise ValueError(f"florence2's instruction is one of {', '.join(_FLORENCE_TASKS)}")
        if self.captioner in _UNASKED and self.instruction:
            raise ValueError(f"{self.captioner} takes no instruction; leave it empty")
        if (self.captioner == "template") != bool(self.template.strip()):
            raise ValueError("template and captioner: template go together; else leave it empty")
        return self

    @model_validator(mode="after")
    def _template_can_be_filled_in(self) -> Self:
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"the template cannot be read: {error}") from error
        gaps = [
            f"{name}{'!' if kind else ''}{form}"
            for _, name, form, kind in parts
            if name is not None
        ]
        if unknown := sorted(set(gaps) - {"subject", "concept"}):
            raise ValueError(f"the template knows {{subject}} and {{concept}}, not {unknown}")
        if "subject" in gaps and not self.subject.strip():
            raise ValueError("the template says {subject}, but subject is empty")
        return self

    @model_validator(mode="after")
    def _words_stay_on_one_line(self) -> Self:
        for name in ("trigger", "subject", "template", "prefix", "suffix"):
            if unreadable_signs(getattr(self, name)):
                raise ValueError(f"{name} holds line breaks or control characters")
        return self


class EncodeParams(Section):
    """From pictures and captions to what training needs in memory."""

    size_px: Side = Field(description="Training resolution: side of the encoded pictures, pixels.")
    sample_prompts: list[Text] = Field(
        description="Prompts of the pictures that training draws while it runs."
    )


class TrainParams(Section):
    """The LoRA: its shape, its optimiser and how it is watched."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(description="Rank of every module.")
    alpha: Annotated[float, Field(gt=0.0)] = Field(
        description="Delta W is (alpha / rank) B A; alpha = rank gives scale 1."
    )
    targets: Literal["all", "attention", "attention+mlp"] = Field(
        description="Linear layers of the blocks that get an adapter (all: 494 on FLUX.1)."
    )
    steps: Positive = Field(description="Optimiser steps.")
    batch: Positive = Field(description="Pictures per step.")
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="AdamW's rate.")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        description="Steps over which the rate rises linearly from 0."
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(description="AdamW's decay.")
    gradient_clip: Annotated[float, Field(gt=0.0)] = Field(
        description="Largest norm of the whole gradient."
    )
    timesteps: Literal["sigmoid", "uniform"] = Field(
        description="Distribution of the noise level: sigmoid of a normal draw, or uniform."
    )
    guidance: Annotated[float, Field(ge=0.0)] = Field(
        description="Guidance embedding in training; 1.0 keeps FLUX.1-dev's distillation intact."
    )
    caption_dropout: Fraction = Field(description="Share of samples trained on the empty caption.")
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")
    seed: Seed = Field(description="Decides the adapter's start and every draw of the run.")
    validation_every: Positive = Field(description="Steps between two validations.")
    validation_sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Fixed noise levels at which validation loss is measured."
    )
    checkpoint_every: Positive = Field(
        description="Steps between two checkpoints; a multiple of validation_every."
    )
    sample_every: Positive = Field(description="Steps between two sets of sample pictures.")
    sample_seed: Seed = Field(description="Noise seed of the sample pictures.")
    select: Literal["best", "last"] = Field(
        description="Which checkpoint becomes the adapter: lowest validation loss, or the last."
    )

    @model_validator(mode="after")
    def _checkpoints_are_validated(self) -> Self:
        if self.checkpoint_every % self.validation_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of "
                f"validation_every ({self.validation_every}), so that each has a loss to choose by"
            )
        return self


class SplitParams(Section):
    """Which adapter is taken apart."""

    adapter: Text = Field(description="The LoRA file; data/train/adapter.safetensors is our own.")


class RenderParams(Section):
    """Which variants get pictures."""

    modes: Annotated[list[Literal["only", "without"]], Field(min_length=1)] = Field(
        description="only: each block by itself; without: all blocks but that one."
    )


class AttributeParams(Section):
    """Integrated gradients over the block gates."""

    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        description="Gauss-Legendre nodes on the way from no LoRA to the full one."
    )
    sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Noise levels at which the velocity is compared."
    )
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    seed: Seed = Field(description="Seed of the bootstrap.")
    gradient_checkpointing: bool = Field(description="Trade time for memory in the backward pass.")


class EvaluateParams(Section):
    """Numbers and heat maps from the pictures."""

    colour_map: Literal["inferno", "magma", "viridis", "turbo", "jet"] = Field(
        description="OpenCV colour map of the heat maps."
    )
    heatmap_scale: Literal["shared", "picture"] = Field(
        description="shared: one scale for all blocks, comparable; picture: each its own."
    )
    heatmap_opacity: Fraction = Field(description="Opacity of the heat map over the picture.")
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    seed: Seed = Field(description="Seed of the bootstrap.")


class SlimParams(Section):
    """The smallest adapter that still does the job."""

    recovery: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        description="Recovery that the slim adapter must reach."
    )
    chooser: Literal["shares", "isolate", "greedy"] = Field(
        description="Order in which blocks are taken: by share, by isolate recovery, or greedily."
    )
    candidates: Positive = Field(
        description="Blocks that the greedy chooser tries at each step, best shares first."
    )
    sigmas: Annotated[list[Sigma], Field(min_length=1)] = Field(
        description="Noise levels at which a set of blocks is scored without pictures."
    )
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(description="Interval coverage.")
    resamples: Positive = Field(description="Bootstrap resamples behind each interval.")
    seed: Seed = Field(description="Seed of the bootstrap.")


class ReportParams(Section):
    """The page."""

    title: Text = Field(description="Heading of the report.")
    thumbnail_px: Annotated[int, Field(ge=32, le=1024)] = Field(
        description="Longest side of the pictures in the page."
    )


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

    @model_validator(mode="after")
    def _prompts_match_the_trigger(self) -> Self:
        trigger = self.caption.trigger
        lacking = [p for p in self.prompts.develop + self.prompts.held_out if trigger not in p]
        if lacking:
            raise ValueError(f"prompts lack the trigger {trigger!r}: {lacking}")
        if having := [p for p in self.prompts.without_trigger if trigger in p]:
            raise ValueError(f"prompts.without_trigger contain the trigger {trigger!r}: {having}")
        return self


def _check_pinned(repository: str | None, revision: str | None) -> None:
    if (repository is None) != (revision is None):
        raise ValueError("repository and revision go together: set both, or both to null")


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
        problems = [_problem(path, root, detail) for detail in error.errors()]
        raise ParamsError(f"{path} is not valid", problems) from error


def _problem(path: Path, root: yaml.Node | None, detail: Any) -> Problem:
    keys = tuple(detail["loc"])
    name = ".".join(str(key) for key in keys) or "the file"
    where = f"{path}:{_line(root, keys)} {name}"
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


def _section(keys: tuple[int | str, ...]) -> type[BaseModel] | None:
    field = Params.model_fields.get(str(keys[0])) if keys else None
    annotation = field.annotation if field else None
    return (
        annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    )


def _description(keys: tuple[int | str, ...]) -> str:
    section = _section(keys)
    if section is None or len(keys) < 2:
        return "See presets/ for a complete file."
    field = section.model_fields.get(str(keys[1]))
    return (field.description if field else None) or "See presets/ for a complete file."


def _suggestion(keys: tuple[int | str, ...]) -> str:
    section = Params if len(keys) == 1 else _section(keys)
    known = sorted(section.model_fields) if section else []
    close = get_close_matches(str(keys[-1]), known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
