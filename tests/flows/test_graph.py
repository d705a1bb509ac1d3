"""The plan is DVC's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.graph import GraphError, Hints, PlannedStage, read_plan
from tests.flows.conftest import TOY, run_dvc


@pytest.fixture(scope="module")
def plan(template: Path) -> list[PlannedStage]:
    """The plan of the whole toy project."""
    return read_plan(template)


def test_plan_equals_the_graph_and_the_order_of_dvc(
    plan: list[PlannedStage], template: Path
) -> None:
    """Stages, edges and order are read; tracked files and other pipelines stay out."""
    assert [stage.name for stage in plan] == ["zeta", "alpha", "omega", "beta"]
    edges = {f'"{before}" -> "{stage.name}";' for stage in plan for before in stage.after}
    shown = set(re.findall(r".+ -> .+;", run_dvc(template, "dag", "--dot", "dvc.yaml")))
    assert edges == {edge for edge in shown if ".dvc" not in edge}
    assert not (template / "alpha.txt").exists(), "planning ran a stage"


def test_hints_are_read(plan: list[PlannedStage]) -> None:
    """A hint of dvc.yaml reaches its stage; without one the defaults hold."""
    hints = {stage.name: stage.hints for stage in plan}
    assert hints["alpha"] == Hints(retries=1, timeout_s=60)
    assert hints["beta"] == Hints()


def test_targets_bring_what_they_need(project: Path) -> None:
    """A target runs with everything before it and nothing after it."""
    assert [stage.name for stage in read_plan(project, ["beta"])] == ["alpha", "beta"]


def test_wrong_hints_are_named_together(project: Path) -> None:
    """A misspelt hint is refused with its place: silently, a stage would run without limit."""
    text = TOY.replace("retries: 1, timeout_s", "retries: -1, timeout")
    (project / "dvc.yaml").write_text(text)
    with pytest.raises(GraphError) as caught:
        read_plan(project)
    for key in ("retries: got -1", "timeout: unknown hint"):
        assert f"dvc.yaml: stages.alpha.meta.prefect.{key}" in str(caught.value)


def test_unreadable_pipeline_raises_the_message_of_dvc(project: Path) -> None:
    """Nobody should have to guess what DVC had to say."""
    with pytest.raises(GraphError, match="gamma"):
        read_plan(project, ["gamma"])
