"""dvc.yaml says what the code does: names, dependencies, outputs, parameters."""

from __future__ import annotations

import ast
import re
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.contracts.errors import ParamsError
from stages.contracts.params import SHARED_SECTIONS, Params, load_params
from tests.presets import PRESETS, load_preset
from tests.repositories import git
from tests.test_layout import dotted, imported_modules, room_of

ROOT = Path(__file__).parents[1]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
EXEMPT_ROOMS = {"contracts", "runtime"}
"""So that a wording does not retrain a LoRA; docs/method.md says what a change there needs."""

NAMES = [
    "fetch",
    "prepare",
    "caption",
    "encode",
    "train",
    "split",
    "render",
    "attribute",
    "evaluate",
    "slim",
    "report",
]


def resolved(text: str) -> str:
    """Return a dvc.yaml text with `${section.key}` filled in from params.yaml."""

    def value(match: re.Match[str]) -> str:
        section, key = match[1].split(".")
        return str(PARAMS[section][key])

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def paths(stage: str, *kinds: str) -> list[str]:
    """Return the resolved paths a stage lists under deps, outs, metrics or plots."""
    entries = [entry for kind in kinds for entry in STAGES[stage].get(kind, [])]
    return [resolved(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def closure(path: Path) -> set[Path]:
    """Return the files of ours that a stage file imports, directly or not, itself included."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for name in imported_modules(current):
            file = ROOT / (name.replace(".", "/") + ".py")
            if name.startswith("stages.") and file.is_file() and room_of(name) not in EXEMPT_ROOMS:
                waiting.append(file)
    return seen


def run_stage_call(stage: str) -> ast.Call:
    """Return the `run_stage(...)` call in a stage file's main."""
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_stage"
    ]
    assert len(calls) == 1, f"stages/{stage}.py should call run_stage once"
    return calls[0]


def keyword(call: ast.Call, name: str) -> tuple[str, ...]:
    """Return a call's keyword as the tuple of strings that it is."""
    value = next(k.value for k in call.keywords if k.arg == name)
    return tuple(ast.literal_eval(value))


def test_one_name_everywhere() -> None:
    """Stage, file, function, params section, data folder and test share one name."""
    assert list(STAGES) == NAMES
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert files == set(NAMES)
    assert set(Params.model_fields) == set(NAMES) | set(SHARED_SECTIONS)
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests/stages").glob("test_*.py")}
    assert set(NAMES) <= tests
    for stage in NAMES:
        tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
        public = [
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
        ]
        assert public == [stage, "main"], f"stages/{stage}.py defines {public}"


@pytest.mark.parametrize("stage", NAMES)
def test_dependencies_are_the_import_closure(stage: str) -> None:
    """A missing entry means stale results, a needless one means hours of retraining."""
    modules = {
        path.relative_to(ROOT).as_posix() for path in closure(ROOT / "stages" / f"{stage}.py")
    }
    listed = {path for path in paths(stage, "deps") if path.endswith(".py")}
    assert sorted(modules - listed) == [], f"add these to deps of {stage}"
    assert sorted(listed - modules) == [], f"remove these from deps of {stage}"


@pytest.mark.parametrize("stage", NAMES)
def test_command_names_only_declared_paths(stage: str) -> None:
    """Every path in a cmd is a dependency or output, or the folder that holds them."""
    words = shlex.split(resolved(STAGES[stage]["cmd"]))
    assert words[:3] == ["python", "-m", f"stages.{stage}"]
    declared = paths(stage, "deps", "outs", "metrics", "plots")
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--out"] == f"data/{stage}"
    for flag, path in flags.items():
        inside = [entry for entry in declared if entry == path or entry.startswith(f"{path}/")]
        assert inside, f"{stage} {flag} {path} is in neither deps nor outs"


def test_no_path_ends_the_quotes_that_it_stands_in(tmp_path: Path) -> None:
    """A shell reads every cmd: a name with a space is one word, and none is a command."""
    commands = " ".join(STAGES[stage]["cmd"] for stage in NAMES)
    names = set(re.findall(r"\$\{([\w.]+)\}", commands))
    assert len(names) == 5
    assert not re.search(r"\$\{", re.sub(r'"\$\{[\w.]+\}[\w/]*"', "", commands))
    for name in sorted(names):
        section, key = name.split(".")
        for path in ('x" y', "$(x)", "`x`", "x\\", "x\ny", "-x"):
            params = {**PARAMS, section: {**PARAMS[section], key: path}}
            (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            with pytest.raises(ParamsError, match=f"{section}.{key}: goes into a command"):
                load_params(tmp_path / "params.yaml")


def test_dvc_reports_to_nobody() -> None:
    """Both pipelines' configs, as they are shipped, switch DVC's telemetry off."""
    found = [ROOT / ".dvc/config", ROOT / "nano/.dvc/config"]
    for path in found:
        assert "    analytics = false\n" in path.read_text(encoding="utf-8"), path
    listed = git(ROOT, "ls-files", "*.dvc/config").split()
    assert sorted(listed) == [path.relative_to(ROOT).as_posix() for path in found]


@pytest.mark.parametrize("stage", NAMES)
def test_outputs_lie_in_the_stage_folder(stage: str) -> None:
    """Each stage writes into data/<stage>/ and nowhere else."""
    outputs = paths(stage, "outs", "metrics", "plots")
    assert outputs
    for path in outputs:
        assert path == f"data/{stage}" or path.startswith(f"data/{stage}/")


@pytest.mark.parametrize("stage", NAMES)
def test_stage_declares_the_params_and_paths_it_reads(stage: str) -> None:
    """What main takes from params.yaml and from flags is what DVC tracks and passes."""
    call = run_stage_call(stage)
    assert isinstance(call.args[0], ast.Name)
    assert call.args[0].id == stage
    assert set(keyword(call, "sections")) == set(STAGES[stage].get("params", []))
    words = shlex.split(STAGES[stage]["cmd"])
    flags = {word.removeprefix("--").replace("-", "_") for word in words[3::2]}
    assert set(keyword(call, "paths")) == flags


def test_shared_sections_are_narrowed_to_what_is_read() -> None:
    """`model: quantisation` must not caption again, nor a sample picture's size encode again.

    A stage gets the values that it names and nothing else of their section.
    """
    whole = {
        stage: {entry for entry in STAGES[stage].get("params", []) if entry in SHARED_SECTIONS}
        for stage in NAMES
    }
    assert {stage for stage in NAMES if "sampling" in whole[stage]} == {
        "train",
        "render",
        "attribute",
        "slim",
        "report",
    }
    assert whole["caption"] == set()
    assert whole["encode"] == {"model"}
    params = load_params(ROOT / "params.yaml")
    narrow = [each for stage in NAMES for each in STAGES[stage].get("params", []) if "." in each]
    assert len(narrow) >= 5
    for entry in narrow:
        assert attrgetter(entry)(params) == attrgetter(entry)(load_params(ROOT / "params.yaml"))


@pytest.mark.parametrize("stage", NAMES)
def test_uncached_files_keep_the_run_cache_on(stage: str) -> None:
    """DVC turns its run cache off for `cache: false` files outside the stage's metrics and plots.

    fetch is meant to be without it: its manifest is in git and the weights are elsewhere.
    """
    entries = [e for e in STAGES[stage].get("outs", []) if isinstance(e, dict)]
    uncached = [
        path for e in entries for path, options in e.items() if options.get("cache") is False
    ]
    assert not uncached or stage == "fetch"
    persistent = [path for e in entries for path, options in e.items() if options.get("persist")]
    assert not persistent, "persist resumes one run with another run's data"


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.name)
def test_params_files_are_valid(path: Path, tmp_path: Path) -> None:
    """Every params file that we ship is complete and accepted, a branch to replace apart."""
    assert load_preset(path, tmp_path)
    text = path.read_text(encoding="utf-8")
    if "revision: main" not in text:
        assert load_params(path)
        return
    assert "names the commit to write in place of `main`" in text
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    assert len(caught.value.problems) == text.count("revision: main")
    assert all(problem.where.endswith(".revision") for problem in caught.value.problems)


def test_presets_are_found() -> None:
    """The loop above runs over something."""
    assert len(PRESETS) >= 6
    assert dotted(ROOT / "stages/train.py") == "stages.train"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_tries_strengths_below_one(path: Path, tmp_path: Path) -> None:
    """The recommended strength is read off them; without any it would be 1 untried."""
    strengths = load_preset(path, tmp_path).render.strengths
    assert any(0.0 < strength < 1.0 for strength in strengths)


def test_only_a_download_is_tried_again_and_nothing_runs_for_ever() -> None:
    """The same bytes fail again; a server that did not answer may. A hung stage holds the GPU."""
    hints = {name: stage["meta"]["prefect"] for name, stage in STAGES.items()}
    assert [name for name, hint in hints.items() if hint.get("retries")] == ["fetch"]
    assert [name for name, hint in hints.items() if not hint.get("timeout_s")] == []
