"""The README's commands exist, and its figures are those of the committed run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.contracts.params import load_params

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def metrics(stage: str) -> dict[str, Any]:
    """Return a stage's committed metrics."""
    path = ROOT / "data" / stage / "metrics.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def figure(pattern: str) -> float:
    """Return the number that the README states where `pattern` matches."""
    found = re.findall(pattern, README)
    assert len(found) == 1, f"{pattern} stands {len(found)} times in the README"
    return float(found[0])


def test_two_commands_stand_near_the_top() -> None:
    """A newcomer finds them without scrolling, and make knows them."""
    top = "\n".join(README.splitlines()[:25])
    targets = re.findall(r"^make (\w+)", top, flags=re.MULTILINE)
    assert targets == ["run", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    assert len(README.splitlines()) <= 150


def test_every_stage_and_subject_is_named() -> None:
    """The tree shows all of stages/ and no more; CONTRIBUTING says where each subject stands."""
    tree = README.partition("\nstages/ ")[2].partition("\nflows/ ")[0]
    here = {path.name for path in (ROOT / "stages").glob("*.py")} - {"__init__.py"}
    subjects = {path.parent.name for path in (ROOT / "stages").glob("*/__init__.py")}
    named = re.findall(r"^  (\w+\.py) ", tree, flags=re.MULTILINE)
    named += re.findall(r"\w+/(?= |$)", tree, flags=re.MULTILINE)
    assert sorted(named) == sorted(here | {f"{subject}/" for subject in subjects})
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rule = contributing.partition("- Imports go down only:")[2].partition("\n- ")[0]
    assert not subjects - set(re.findall(r"`(\w+)`", rule))


def test_figures_are_those_of_the_committed_run() -> None:
    """A new run that changes them changes the README, or fails here."""
    train, slim = metrics("train"), metrics("slim")
    assert figure(r"\| (\d+) % below the base model's") == round(100 * train["improvement"])
    attribute = metrics("attribute")
    assert figure(r"half of the effect \| (\d+) of") == attribute["blocks_for_half"]
    assert figure(r"\| (\d+) of 57 blocks, ") == slim["blocks_kept"]
    assert figure(r"blocks, (\d+) % of the bytes") == round(100 * slim["bytes_ratio"])
    assert figure(r"recovers (\d+) % of the effect") == round(100 * slim["recovery"])
    assert figure(r"\(Kendall τ-b\) \| (-?\d\.\d\d)") == round(metrics("evaluate")["rank_tau"], 2)
    assert figure(r"\| shares (-?\d\.\d\d); pictures") == round(attribute["split_half_tau"], 2)
    evaluate = metrics("evaluate")
    assert figure(r"single blocks (-?\d\.\d\d):") == round(evaluate["split_half_tau"], 2)
    assert figure(r"\| (\d\.\d\d), where 0\.25 is a warning") == round(evaluate["bleed"], 2)


def test_the_committed_run_keeps_the_projects_promises() -> None:
    """The LoRA learned, the slim one does its job, and the shares add up."""
    params = load_params(ROOT / "params.yaml")
    assert metrics("train")["improvement"] >= 0.25
    slim = metrics("slim")
    assert slim["recovery"] >= params.slim.recovery
    assert slim["blocks_kept"] < metrics("split")["blocks_present"]
    assert metrics("attribute")["completeness_error"] <= 0.05


def test_the_default_run_is_the_nano_preset() -> None:
    """After trying another preset, `cp presets/nano-flux.yaml params.yaml` is the way back."""
    assert load_params(ROOT / "params.yaml") == load_params(ROOT / "presets/nano-flux.yaml")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_to_files(path: str) -> None:
    """No dead link, picture included."""
    assert (ROOT / path).is_file()
