"""Sections of the stages that bring weights, pictures and captions in."""

from __future__ import annotations

from pathlib import Path
from string import Formatter
from typing import Annotated, Final, Literal

from pydantic import Field

from stages.contracts.captions import unreadable_characters
from stages.contracts.params.fields import (
    Channel,
    CommandPath,
    CommitHash,
    Fraction,
    Positive,
    Section,
    Side,
    Text,
    check_pinned,
    rule,
)
from stages.contracts.params.idle import Use, require_effect

_FLORENCE_TASKS: Final = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
_UNASKED: Final = frozenset({"sidecar", "template", "blip", "wd14"})


class SingleFilesParams(Section):
    """A base model as ComfyUI keeps it: one .safetensors file for each part."""

    transformer: Text = Field(description="File of the transformer, such as flux1-dev.safetensors.")
    autoencoder: Text = Field(description="File of the autoencoder (VAE), such as ae.safetensors.")
    text_encoder: Text = Field(description="File of CLIP-L, such as clip_l.safetensors.")
    text_encoder_2: Text = Field(description="File of T5, such as t5xxl_fp16.safetensors.")
    converted: Text = Field(
        description="Folder for the copy that is made of them once, such as .blocklens/weights; "
        "it needs as much space again."
    )


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
    single_files: SingleFilesParams | None = Field(
        description="Weights as single files, or null; `folder` then has only the configs and "
        "tokenizers."
    )

    @rule
    def _repository_is_pinned(self) -> None:
        check_pinned(self.repository, self.revision)

    @rule
    def _weights_have_one_source(self) -> None:
        if self.repository and self.single_files:
            raise ValueError("repository and single_files exclude each other: set one to null")
        if self.single_files and Path(self.single_files.converted).is_relative_to(self.folder):
            raise ValueError("single_files.converted lies in folder, which DVC watches for changes")


class ConceptParams(Section):
    """What is special about one sub-folder of `prepare.images`."""

    folder: Annotated[str, Field(pattern=r"^[^/\\]+$")] = Field(description="Its name.")
    repeats: Positive = Field(description="How often each of its pictures is used in an epoch.")
    regularisation: bool = Field(
        description="Pictures of what the LoRA must leave alone: captions without the trigger."
    )


class PrepareParams(Section):
    """From raw pictures to checked ones of one size."""

    images: CommandPath = Field(
        description="Folder with the training pictures and their captions; sub-folders are "
        "concepts."
    )
    validation_images: CommandPath = Field(
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

    @rule
    def _held_out_once(self) -> None:
        same = Path(self.images) == Path(self.validation_images)
        if same != (self.validation_share > 0):
            raise ValueError(
                f"validation_share is {self.validation_share:g}, so validation_images must "
                + ("be another folder than images" if same else "be the same folder as images")
            )

    @rule
    def _concepts_once(self) -> None:
        folders = [concept.folder for concept in self.concepts]
        if twice := sorted({name for name in folders if folders.count(name) > 1}):
            raise ValueError(f"concepts listed more than once: {twice}")

    @rule
    def _buckets_have_a_square(self) -> None:
        if self.fit == "bucket" and self.size_px % 64:
            raise ValueError(f"size_px ({self.size_px}) must be a multiple of 64 for fit: bucket")

    @rule
    def _focus_has_an_effect(self) -> None:
        use = Use("prepare.focus", self.focus, self.fit != "pad", "fit: crop or bucket")
        require_effect([use], within="prepare")


class CaptionParams(Section):
    """One caption per picture, the trigger first."""

    trigger: Annotated[str, Field(pattern=r"^\S+$")] = Field(
        description="The word that calls the concept; one word, no spaces, unknown to the model."
    )
    captioner: Literal["sidecar", "template", "blip", "blip2", "florence2", "qwen-vl", "wd14"] = (
        Field(description="Kind of captioner for pictures that you wrote none for; sidecar: none.")
    )
    folder: CommandPath = Field(
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

    @rule
    def _repository_is_pinned(self) -> None:
        check_pinned(self.repository, self.revision)

    @rule
    def _captioner_is_asked_its_way(self) -> None:
        if self.captioner == "qwen-vl" and not self.instruction.strip():
            raise ValueError("qwen-vl needs an instruction; see docs/captioners.md")
        if self.captioner == "florence2" and self.instruction not in _FLORENCE_TASKS:
            raise ValueError(f"florence2's instruction is one of {', '.join(_FLORENCE_TASKS)}")
        if self.captioner in _UNASKED and self.instruction:
            raise ValueError(f"{self.captioner} takes no instruction; leave it empty")
        if (self.captioner == "template") != bool(self.template.strip()):
            raise ValueError("template and captioner: template go together; else leave it empty")

    @rule
    def _template_can_be_filled_in(self) -> None:
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

    @rule
    def _all_have_an_effect(self) -> None:
        tagger, writes = self.captioner == "wd14", self.captioner != "sidecar"
        generated = "a captioner other than sidecar"
        needs = {
            "subject": ("{subject}" in self.template, "{subject} in the template"),
            "prefix": (writes, generated),
            "suffix": (writes, generated),
            "tag_threshold": (tagger, "captioner: wd14"),
            "character_threshold": (tagger, "captioner: wd14"),
        }
        uses = [Use(f"caption.{key}", getattr(self, key), *need) for key, need in needs.items()]
        require_effect(uses, within="caption")

    @rule
    def _words_stay_on_one_line(self) -> None:
        for name in ("trigger", "subject", "template", "prefix", "suffix"):
            if unreadable_characters(getattr(self, name)):
                raise ValueError(f"{name} holds line breaks or control characters")


class EncodeParams(Section):
    """From pictures and captions to what training needs in memory."""

    sizes_px: Annotated[list[Side], Field(min_length=1)] = Field(
        description="Training resolutions: sides of the encoded pictures, pixels; training uses "
        "all of them, validation the first."
    )
    flip: bool = Field(
        description="Encode training pictures mirrored as well; training uses either with equal "
        "chance. Not for kind: character, and never where a caption speaks of sides or lettering."
    )
    without_trigger: bool = Field(
        description="Encode captions without the trigger too: what train.output_preservation needs."
    )
    trigger_class: str = Field(
        description="Word in the trigger's place in captions without it, such as person; or empty."
    )
    class_prompts: list[Text] = Field(
        description="Prompts of pictures that the base model itself makes, for training to keep "
        "to (prior preservation); usually none, or of the subject's class."
    )
    class_pictures: Positive = Field(description="Pictures that it makes of each class prompt.")
    sample_prompts: list[Text] = Field(
        description="Prompts of the pictures that training draws while it runs."
    )

    @rule
    def _sizes_and_prompts_once(self) -> None:
        if len(set(self.sizes_px)) < len(self.sizes_px):
            raise ValueError(f"sizes_px lists a size more than once: {self.sizes_px}")
        if len(set(self.class_prompts)) < len(self.class_prompts):
            raise ValueError("class_prompts lists a prompt more than once")

    @rule
    def _class_stays_on_one_line(self) -> None:
        if unreadable_characters(self.trigger_class):
            raise ValueError("trigger_class holds line breaks or control characters")

    @rule
    def _all_have_an_effect(self) -> None:
        uses = [
            Use(
                "encode.class_pictures",
                self.class_pictures,
                bool(self.class_prompts),
                "class_prompts",
            ),
            Use(
                "encode.trigger_class", self.trigger_class, self.without_trigger, "without_trigger"
            ),
        ]
        require_effect(uses, within="encode")
