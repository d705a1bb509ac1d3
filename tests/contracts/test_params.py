"""params.yaml is refused as a whole, with every mistake and its line, or accepted as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.contracts.errors import ParamsError
from stages.contracts.params import (
    ConceptParams,
    Params,
    Section,
    SingleFilesParams,
    load_params,
)
from stages.contracts.params.idle import NEUTRAL

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Callable[[Document], None]], Path]:
    """Return a function that writes params.yaml with a change."""

    def write(change: Callable[[Document], None]) -> Path:
        document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        change(document)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    return write


Writer = Callable[[Callable[[Document], None]], Path]


def test_all_mistakes_are_reported_together_with_their_lines(written: Writer) -> None:
    """One round of corrections is enough."""

    def spoil(document: Document) -> None:
        document["train"]["rnak"] = 16
        document["train"]["steps"] = 0
        document["train"]["learning_rate"] = "fast"
        del document["slim"]["recovery"]
        document["colour"] = {}

    path = written(spoil)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if "rnak" in line)
    assert "5 problems" in message
    assert f"{path}:{number} train.rnak: unknown key. Did you mean 'rank'?" in message
    assert "train.steps: must be a whole number of at least 1, or auto, got 0" in message
    assert "train.learning_rate: Input should be a valid number, got 'fast'" in message
    assert "slim.recovery: missing. Add it: Recovery that the slim adapter must reach." in message
    assert "colour: unknown key" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("train", "checkpoint_every", 75, "must be a multiple of validation_every"),
        ("train", "steps", "many", "must be a whole number of at least 1, or auto, got 'many'"),
        ("prompts", "held_out_seeds", [0], "seeds both in seeds and held_out_seeds"),
        ("prompts", "develop", ["a robot"], "prompts lack the trigger 'tok'"),
        ("prompts", "without_trigger", ["tok again"], "contain the trigger 'tok'"),
        (
            "fetch",
            "repository",
            "black-forest-labs/FLUX.1-dev",
            "repository and revision go together",
        ),
        ("caption", "trigger", "two words", "should match pattern"),
        ("caption", "captioner", "qwen-vl", "qwen-vl needs an instruction"),
        ("caption", "captioner", "florence2", "instruction is one of <CAPTION>"),
        ("caption", "captioner", "template", "captioner: template go together"),
        ("caption", "template", "a robot", "captioner: template go together"),
        ("caption", "instruction", "a photo of", "blip takes no instruction"),
        ("caption", "prefix", "a\nphoto", "prefix holds line breaks"),
        ("caption", "tag_threshold", 1.5, "less than or equal to 1"),
        ("sampling", "size_px", 100, "multiple of 16"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    written: Writer, section: str, key: str, value: object, expected: str
) -> None:
    """A run that could only disappoint does not start."""
    path = written(lambda document: document[section].__setitem__(key, value))
    with pytest.raises(ParamsError, match=expected):
        load_params(path)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"quantisation": "int8"}, "quantisation: int8 computes in bfloat16"),
        (
            {"precision": "bfloat16", "quantisation": "fp8", "offload": "group"},
            "quantisation: fp8 and offload: group exclude each other",
        ),
        (
            {"offload": "group"},
            "needs train.gradient_checkpointing and attribute.gradient_checkpointing: true",
        ),
    ],
)
def test_weights_that_cannot_be_kept_so_are_refused(
    written: Writer, model: Document, expected: str
) -> None:
    """What the base model is stored as, and where, has to go together, before anything is read."""
    with pytest.raises(ParamsError, match=expected):
        load_params(written(lambda document: document["model"].update(model)))


def test_nested_keys_have_their_own_suggestions_and_sentences(written: Writer) -> None:
    """A key two levels down is compared with its neighbours, not with its parent's."""
    files = {"transformr": "a", "autoencoder": "", "text_encoder": "c", "converted": "d"}
    path = written(lambda document: document["fetch"].__setitem__("single_files", files))
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "fetch.single_files.transformr: unknown key. Did you mean 'transformer'?" in message
    assert "single_files.text_encoder_2: missing. Add it: File of T5, such as t5xxl" in message
    assert "fetch.single_files.autoencoder: String should have at least 1 character" in message
    assert "File of the autoencoder (VAE), such as ae.safetensors." in message


def test_weights_have_one_source(written: Writer) -> None:
    """With a repository and single files, nobody knows which are used."""
    names = ("transformer", "autoencoder", "text_encoder", "text_encoder_2", "converted")

    def spoil(document: Document) -> None:
        document["fetch"] |= {
            "repository": "owner/name",
            "revision": "0" * 40,
            "single_files": dict.fromkeys(names, "x"),
        }

    with pytest.raises(ParamsError, match="repository and single_files exclude each other"):
        load_params(written(spoil))


def test_converted_weights_lie_outside_what_is_watched(written: Writer) -> None:
    """Or else fetch would change its own input, and run again every time."""
    names = ("transformer", "autoencoder", "text_encoder", "text_encoder_2")

    def spoil(document: Document) -> None:
        files = dict.fromkeys(names, "x") | {"converted": "data/nano-flux/converted"}
        document["fetch"]["single_files"] = files

    with pytest.raises(ParamsError, match=r"converted lies in folder, which DVC watches"):
        load_params(written(spoil))


def test_steps_may_be_left_to_the_pictures(written: Writer) -> None:
    """`auto` is the one word among the numbers of steps."""
    path = written(lambda document: document["train"].__setitem__("steps", "auto"))
    assert load_params(path).train.steps == "auto"


def test_prodigy_refuses_the_rate_of_another_optimiser(written: Writer) -> None:
    """It multiplies: AdamW's rate left in place would train a thousand times too slowly."""
    with pytest.raises(ParamsError, match=r"takes learning_rate as a factor: 0\.001 would"):
        load_params(written(lambda document: document["train"].update(optimiser="prodigy")))


def test_schedule_free_refuses_a_schedule(written: Writer) -> None:
    """Its average stands in place of a falling rate; both together train neither."""
    change = {"optimiser": "schedule-free-adamw", "scheduler": "cosine"}
    with pytest.raises(ParamsError, match="scheduler must be constant, not cosine"):
        load_params(written(lambda document: document["train"].update(change)))


def test_a_branch_name_is_not_a_revision(written: Writer) -> None:
    """`main` today is not `main` tomorrow."""

    def spoil(document: Document) -> None:
        document["fetch"] |= {"repository": "black-forest-labs/FLUX.1-dev", "revision": "main"}

    with pytest.raises(ParamsError, match=r"fetch\.revision"):
        load_params(written(spoil))


def test_missing_and_unreadable_files_say_what_to_do(tmp_path: Path) -> None:
    """Neither ends in a traceback."""
    with pytest.raises(ParamsError, match="copy one from presets/"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: [", encoding="utf-8")
    with pytest.raises(ParamsError, match="not readable YAML"):
        load_params(tmp_path / "params.yaml")


def sections() -> list[type[Section]]:
    """Return the type of every section."""
    top = [field.annotation for field in Params.model_fields.values() if field.annotation]
    return [*top, ConceptParams, SingleFilesParams]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_value_is_in_the_file_and_explained(section: type[Section]) -> None:
    """No default hides in the code, and each key has its sentence."""
    assert section.model_fields
    for name, field in section.model_fields.items():
        assert field.is_required(), f"{section.__name__}.{name} has a default"
        assert field.description, f"{section.__name__}.{name} is not explained"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("a {subject.__class__}", r"not \['subject.__class__'\]"),
        ("a {0}", r"not \['0'\]"),
        ("a {concept:>9}", r"not \['concept>9'\]"),
        ("a {}", r"not \[''\]"),
        ("a {concept", "the template cannot be read"),
        ("a {subject}", "but subject is empty"),
    ],
)
def test_template_knows_its_gaps(written: Writer, template: str, expected: str) -> None:
    """A gap that nothing fills would end up in every caption."""

    def change(document: Document) -> None:
        document["caption"] |= {"captioner": "template", "template": template}

    with pytest.raises(ParamsError, match=expected):
        load_params(written(change))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("encode", {"flip": True}, "encode.flip mirrors faces"),
        ("encode", {"sizes_px": [512, 2048]}, "has 2048, but prepare.size_px is 1024"),
        ("encode", {"sizes_px": [512, 512]}, "lists a size more than once"),
        ("encode", {"class_prompts": ["a tok"]}, "encode.class_prompts contain the trigger 'tok'"),
        ("encode", {"class_prompts": ["a", "a"]}, "lists a prompt more than once"),
        (
            "encode",
            {"trigger_class": "Tok", "without_trigger": True},
            "encode.trigger_class is the trigger 'tok'",
        ),
        ("encode", {"trigger_class": "a\nb"}, "line breaks"),
        ("train", {"output_preservation": 1.0}, "set encode.without_trigger: true"),
    ],
)
def test_sections_that_contradict_each_other(
    written: Writer, section: str, changes: Document, message: str
) -> None:
    """What one stage asks for, another must have made."""
    with pytest.raises(ParamsError, match=re.escape(message)):
        load_params(written(lambda document: document[section].update(changes)))


def test_style_may_be_mirrored(written: Writer) -> None:
    """Faces may not; a brush stroke may."""

    def change(document: Document) -> None:
        document["encode"]["flip"] = True
        document["prepare"]["kind"] = "style"

    assert load_params(written(change)).encode.flip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": [0.5, 0.5]}, "strengths names one twice"),
        ({"strengths": [0.12345]}, "more than three decimals"),
        ({"strengths": [1.6]}, "less than or equal to 1.5"),
        ({"groups": {"Early": ["double.0-6"]}}, "render.groups.Early"),
        ({"groups": {"early": ["double.6-0"]}}, "runs backwards"),
        ({"subsets": {"a": {"single.1-9": 1.0, "single.9": 0.5, "base": 1.0}}}, "two strengths"),
        ({"subsets": {"a": {"blocks": 1.0}}}, "not a pattern of blocks"),
    ],
)
def test_pictures_that_cannot_be_named_or_made_are_refused(
    written: Writer, changes: Document, message: str
) -> None:
    """Each strength, band and mix of blocks is one picture with one meaning."""
    with pytest.raises(ParamsError, match=message):
        load_params(written(lambda document: document["render"].update(changes)))


def test_the_report_is_of_the_adapter(written: Writer) -> None:
    """A page never shows one run's training beside another LoRA, nor leaves out its own."""

    def elsewhere(document: Document) -> None:
        document["split"]["adapter"] = "loras/from-elsewhere.safetensors"

    def ours_as_foreign(document: Document) -> None:
        document["report"]["origin"] = "data/elsewhere"

    def foreign(document: Document) -> None:
        elsewhere(document)
        ours_as_foreign(document)

    with pytest.raises(ParamsError, match=r"not of this run: set report\.origin: data/elsewhere"):
        load_params(written(elsewhere))
    with pytest.raises(ParamsError, match=r"is of this run: set report\.origin: data"):
        load_params(written(ours_as_foreign))
    assert load_params(written(foreign)).report.origin == "data/elsewhere"


def test_formats_that_do_not_compile_are_not_compiled(written: Writer) -> None:
    """docs/hardware.md: torch.compile refuses int8 and fp8."""

    def spoil(document: Document) -> None:
        document["render"]["compile"] = True
        document["model"].update({"precision": "bfloat16", "quantisation": "fp8"})

    with pytest.raises(ParamsError, match=r"render\.compile: true does not work with"):
        load_params(written(spoil))


IDLE: dict[str, Document] = {
    "caption": {"subject": "a robot", "tag_threshold": 0.5, "character_threshold": 0.5},
    "encode": {"class_pictures": 30, "trigger_class": "person"},
    "prepare": {"focus": "saliency", "fit": "pad"},
    "slim": {"candidates": 9, "nodes": 9, "chooser": "shares"},
    "train": {
        "mask_floor": 0.2,
        "min_snr_gamma": 1.0,
        "output_preservation_share": 0.5,
        "scheduler_cycles": 2,
        "scheduler_power": 2.0,
        "timestep_location": 0.5,
        "timestep_scale": 2.0,
    },
}
"""Values that nothing reads, and what keeps them from being read."""


def test_values_without_effect_are_refused_together(written: Writer) -> None:
    """Whoever sets a value expects it to do something; each is named with its line and way out."""

    def spoil(document: Document) -> None:
        for section, values in IDLE.items():
            document[section].update(values)

    path = written(spoil)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    error = caught.value
    named = {problem.where.rpartition(" ")[2]: problem for problem in error.problems}
    switches = {"prepare.fit", "slim.chooser"}
    expected = {f"{section}.{key}" for section, values in IDLE.items() for key in values}
    assert named.keys() == expected - switches
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if "scheduler_cycles" in line)
    assert str(named["train.scheduler_cycles"]) == (
        f"{path}:{number} train.scheduler_cycles: 2 has no effect without scheduler: "
        "cosine-restarts. Set it to 1, or ask for scheduler: cosine-restarts."
    )


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("caption", {"captioner": "wd14", "tag_threshold": 0.5, "character_threshold": 0.5}),
        ("caption", {"captioner": "template", "template": "a {subject}", "subject": "b"}),
        ("caption", {"prefix": "a photograph of", "suffix": "in daylight"}),
        ("encode", {"class_prompts": ["a robot"], "class_pictures": 30}),
        ("encode", {"without_trigger": True, "trigger_class": "person"}),
        ("prepare", {"focus": "saliency"}),
        ("slim", {"chooser": "greedy", "candidates": 9}),
        ("slim", {"chooser": "shrinking", "nodes": 9}),
        ("train", {"masked_loss": True, "mask_floor": 0.2}),
        ("train", {"loss_weighting": "min-snr", "min_snr_gamma": 1.0}),
        ("train", {"scheduler": "cosine-restarts", "scheduler_cycles": 2}),
        ("train", {"scheduler": "polynomial", "scheduler_power": 2.0}),
        ("train", {"timesteps": "shifted", "timestep_location": 0.5, "timestep_scale": 2.0}),
    ],
)
def test_values_with_an_effect_are_accepted(
    written: Writer, section: str, values: Document
) -> None:
    """The same values where something reads them."""
    params = load_params(written(lambda document: document[section].update(values)))
    assert getattr(params, section).model_dump().items() >= values.items()


def test_regularisation_needs_pictures(written: Writer) -> None:
    """A share of samples that there are no pictures for; class prompts or a concept bring some."""
    idle = {"regularisation_share": 0.3, "regularisation_weight": 0.5}
    with pytest.raises(ParamsError) as caught:
        load_params(written(lambda document: document["train"].update(idle)))
    message = str(caught.value)
    assert "train.regularisation_share: 0.3 has no effect without encode.class_prompts" in message
    assert "train.regularisation_weight: 0.5 has no effect" in message

    def with_prompts(document: Document) -> None:
        document["train"].update(idle)
        document["encode"]["class_prompts"] = ["a robot"]

    def with_concept(document: Document) -> None:
        document["train"].update(idle)
        concept = {"folder": "robots", "repeats": 1, "regularisation": True}
        document["prepare"]["concepts"] = [concept]

    for change in (with_prompts, with_concept):
        assert load_params(written(change)).train.regularisation_share == 0.3


def test_warmup_that_never_ends_is_refused(written: Writer) -> None:
    """The rate that was asked for would never be reached."""
    change = {"warmup_steps": 300}
    with pytest.raises(ParamsError, match=r"warmup_steps: 300 are not fewer than the 300 steps"):
        load_params(written(lambda document: document["train"].update(change)))


def test_all_broken_rules_of_a_section_are_named(written: Writer) -> None:
    """The first one does not hide the others."""
    change = {"checkpoint_every": 75, "optimiser": "prodigy", "scheduler_cycles": 2}
    with pytest.raises(ParamsError) as caught:
        load_params(written(lambda document: document["train"].update(change)))
    message = str(caught.value)
    assert "3 problems" in message
    for part in ("must be a multiple of validation_every", "as a factor", "2 has no effect"):
        assert part in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(written: Writer, value: float) -> None:
    """YAML knows .nan and .inf, and a range lets infinity through."""

    def spoil(document: Document) -> None:
        document["train"]["timestep_location"] = value
        document["train"]["gradient_clip"] = value
        document["train"]["validation_sigmas"] = [0.5, value]
        document["prepare"]["max_aspect"] = value

    with pytest.raises(ParamsError) as caught:
        load_params(written(spoil))
    message = str(caught.value)
    assert message.count("Input should be a finite number") == 4


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))])
def test_presets_hold_the_neutral_values(path: Path) -> None:
    """What a refused value is told to become is what every preset has, and changes nothing."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, value in NEUTRAL.items():
        section, key = name.split(".")
        assert document[section][key] == value, name


def phase(**changes: object) -> Document:
    """Return a phase that may follow the demo's first one."""
    return {"rank": 16, "alpha": 16.0, "steps": 50, "learning_rate": 0.0005} | changes


def test_all_that_is_wrong_with_phases_is_told_at_once(written: Writer) -> None:
    """Within a phase and between two, each with its line, and the rest of the file with them."""

    def spoil(document: Document) -> None:
        falling, idle, long = phase(rank=4), phase(steps=0), phase(rank=3, batch=2)
        document["train"]["phases"] = [falling, idle, long]
        document["train"]["accumulation"] = 0

    path = written(spoil)
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    lines = path.read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if "- rank: 4" in line)
    assert "5 problems" in message
    assert f"{path}:{number} train.phases.0.rank: below the 8 of the phase before" in message
    assert "Stage slim is where adapters shrink, got 4." in message
    assert "train.phases.1.steps: Input should be greater than or equal to 1, got 0." in message
    assert "train.phases.2.rank: below the 16 of the phase before" in message
    assert "train.phases.2.batch: unknown key. Known keys: alpha, learning_rate, rank" in message
    assert "train.accumulation: Input should be greater than or equal to 1" in message


@pytest.mark.parametrize("phases", [[], [phase()], [phase(rank=8), phase(rank=8), phase()]])
def test_phases_that_fit_are_taken_as_they_are(written: Writer, phases: list[Document]) -> None:
    """The same rank is no fall: such a phase has an optimiser, a rate and a schedule of its own."""
    params = load_params(written(lambda document: document["train"].update(phases=phases)))
    assert [one.model_dump() for one in params.train.phases] == phases


PRODIGY = {"optimiser": "prodigy", "learning_rate": 1.0}
SINGLE_BLOCKS = {"blocks": ["single"], "rank": 2, "alpha": 2.0, "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"phases": [phase(steps=10)]}, "warmup_steps: 10 are not fewer than the 10 steps of ph"),
        ({"phases": {"rank": 8}}, r"train.phases: Input should be a valid list"),
        ({**PRODIGY, "phases": [phase()]}, "0.0005 would train next to nothing"),
        (
            {**PRODIGY, "phases": [phase(learning_rate=0.5)], "block_settings": [SINGLE_BLOCKS]},
            "and so must every phase's",
        ),
    ],
)
def test_phases_that_do_not_fit_the_rest_are_refused(
    written: Writer, change: Document, expected: str
) -> None:
    """A warm-up begins with every phase, and Prodigy's rate is a factor in every phase."""
    with pytest.raises(ParamsError, match=expected):
        load_params(written(lambda document: document["train"].update(change)))
