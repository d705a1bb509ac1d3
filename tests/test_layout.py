"""The rules of the house: who may import whom, and what lives where."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BOTTOM = {"contracts"}
FOUNDATION = BOTTOM | {"runtime"}
SUBJECTS = {"captioning", "encoding", "optimisation", "sampling", "lens", "reporting", "exporting"}
BUILT_ON = {
    "training": {"encoding", "optimisation"},
    "judging": {"encoding", "optimisation", "training", "imaging"},
    "slimming": {"sampling", "lens", "imaging"},
}
"""Subject -> subjects beside it, or pixels, that it is built on."""
MAY_IMPORT = {
    "contracts": set[str](),
    "runtime": BOTTOM,
    "imaging": BOTTOM,
    "families": FOUNDATION,
    "adapters": FOUNDATION | {"families"},
    **{subject: FOUNDATION | {"families", "adapters"} for subject in SUBJECTS},
    **{room: FOUNDATION | {"families", "adapters"} | below for room, below in BUILT_ON.items()},
    "stage": FOUNDATION | SUBJECTS | BUILT_ON.keys() | {"imaging", "families", "adapters"},
}
"""Folder of stages/ -> folders of stages/ that it may import, itself apart."""


def room_of(module: str) -> str:
    """Return the folder of stages/ that a module lies in, or `stage` for a stage file."""
    parts = module.split(".")
    return parts[1] if (ROOT / "stages" / parts[1]).is_dir() else "stage"


def imported_modules(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_files(top: str) -> list[Path]:
    """Return the Python files below a top-level folder, and fail if there are suspiciously few."""
    files = sorted((ROOT / top).rglob("*.py"))
    assert len(files) >= 3, f"only {files} found in {top}/: is the folder right?"
    return files


def dotted(path: Path) -> str:
    """Return a file's module name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


STAGE_MODULES = [path for path in module_files("stages") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", STAGE_MODULES, ids=dotted)
def test_imports_go_down_only(path: Path) -> None:
    """A module imports its own room and the rooms below it, and no stage imports a stage."""
    room = room_of(dotted(path))
    allowed = MAY_IMPORT[room] | ({room} if room != "stage" else set())
    ours = {name for name in imported_modules(path) if name.startswith("stages.")}
    rooms = {room_of(name) for name in ours}
    assert rooms <= allowed, f"{dotted(path)} reaches up to {sorted(rooms - allowed)}"


@pytest.mark.parametrize("path", STAGE_MODULES, ids=dotted)
def test_stages_do_not_know_prefect_or_flows(path: Path) -> None:
    """`dvc repro` works without Prefect: only flows/ imports it."""
    names = {name.split(".")[0] for name in imported_modules(path)}
    assert not names & {"prefect", "flows", "nano", "tests"}


def test_flows_reach_stages_through_dvc_only() -> None:
    """A flow that imports a stage would have a second graph beside dvc.yaml.

    The door alone looks into pictures, before it takes them; the review alone draws the report's
    maps, of two runs.
    """
    beside = {"mcp_server": {"imaging"}, "review": {"reporting"}}
    for path in module_files("flows"):
        ours = {name for name in imported_modules(path) if name.startswith("stages.")}
        allowed = BOTTOM | beside.get(path.parent.name, set())
        assert {room_of(name) for name in ours} <= allowed, path


MIXER_MAY_IMPORT = FOUNDATION | {"families", "adapters", "sampling", "imaging"}


def test_the_mixer_stands_on_rooms_and_nothing_stands_on_it() -> None:
    """A page that a stage, a flow or a result depended on would be one more thing to reproduce."""
    for path in module_files("mixer"):
        names = imported_modules(path)
        ours = {name for name in names if name.startswith("stages.")}
        assert {room_of(name) for name in ours} <= MIXER_MAY_IMPORT, path
        assert {name for name in names if name.startswith("flows.")} <= {
            "flows.overrides",
            "flows.overrides.PARAMS",
            "flows.overrides.apply_overrides",
        }, path
    for path in [*module_files("stages"), *module_files("flows"), *module_files("nano")]:
        assert not {name.split(".")[0] for name in imported_modules(path)} & {"mixer", "gradio"}


def test_the_engine_needs_no_page() -> None:
    """What a mix is, is tested without a browser and usable without Gradio."""
    with_gradio = {
        path.stem
        for path in module_files("mixer")
        if "gradio" in {name.split(".")[0] for name in imported_modules(path)}
    }
    assert with_gradio == {"page", "server"}


def test_what_writes_pages_knows_contracts_alone() -> None:
    """Pages say what params, tables and dvc.yaml say; no page needs a model to be written."""
    for path in module_files("docs"):
        names = imported_modules(path)
        ours = {name for name in names if name.startswith("stages.")}
        assert {room_of(name) for name in ours} <= BOTTOM, path
        assert not {name.split(".")[0] for name in names} & {"flows", "mixer", "benchmarks"}


@pytest.mark.parametrize(
    "path",
    [path for path in STAGE_MODULES if room_of(dotted(path)) == "imaging"],
    ids=dotted,
)
def test_imaging_needs_no_torch(path: Path) -> None:
    """Pixels are numpy: `evaluate` and `prepare` start without loading torch."""
    names = {name.split(".")[0] for name in imported_modules(path)}
    assert not names & {"torch", "diffusers", "transformers", "peft"}


def test_no_file_is_a_drawer_for_everything() -> None:
    """A name that says nothing collects everything."""
    drawers = {"utils", "util", "common", "helpers", "misc", "old", "v2", "base"}
    names = {path.stem for top in ("stages", "flows", "nano") for path in module_files(top)}
    assert not names & drawers
