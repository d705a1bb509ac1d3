"""Complete params.yaml files by name: made of a preset and changes, checked, kept in the inbox."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from flows.mcp_server.inbox import (
    Inbox,
    changing,
    existing,
    names,
    put_file,
    require_new,
    require_space,
    workbench,
)
from flows.mcp_server.limits import CONFIG_BYTES, CONFIG_DEPTH
from flows.mcp_server.requests import RequestError, require_name, shown
from flows.overrides import PARAMS, apply_overrides
from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import load_params

LOCATIONS: Final = frozenset(
    {
        "caption.folder",
        "evaluate.distances",
        "fetch.folder",
        "fetch.single_files",
        "prepare.images",
        "prepare.validation_images",
        "report.origin",
        "split.adapter",
    }
)
"""Parameters that name files of the server. dvc.yaml puts most of them into commands."""

_LOCATION_REMEDY: Final = (
    "Leave it out: the preset says where weights are, start-training and evaluate-blocks which "
    "pictures and which LoRA."
)
_REPOSITORIES: Final = ("fetch.repository", "caption.repository")
_SHARE: Final = "prepare.validation_share"
_TRAINING_ADAPTER: Final = "train.training_adapter"
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def presets(root: Path) -> list[dict[str, str]]:
    """Return name and description of each preset of the checkout: the first lines of its file."""
    return [
        {"preset": path.stem, "description": _description(path)}
        for path in sorted((root / "presets").glob("*.yaml"))
    ]


def create_config(
    inbox: Inbox,
    root: Path,
    name: str,
    preset: str,
    trigger: str | None,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """Keep a preset with changes, by names such as `train.rank`, as a config.

    A trigger takes the place of the preset's own, in its prompts too.

    Raises:
        RequestError: a name is taken or cannot be used, or a change names files of the server.
        ParamsError: the params would not be valid; all that is wrong.
    """
    source = _preset(root, preset)
    require_new(inbox, "config", name)
    if problems := [problem for key in changes if (problem := _change_problem(key, changes[key]))]:
        raise RequestError("These changes are refused", problems)
    with workbench(inbox) as bench:
        made = bench / PARAMS
        made.write_bytes(source.read_bytes())
        first = {} if trigger is None else _with_trigger(source, trigger)
        if changes.get(_SHARE):
            first |= _one_folder(source)
        apply_overrides(bench, {**first, **changes})
        _require_small(made.read_bytes())
        with changing(inbox):
            require_space(inbox, made.stat().st_size)
            put_file(made, require_new(inbox, "config", name))
    return {"config": name, "preset": preset, "changed": sorted({**first, **changes})}


def list_configs(inbox: Inbox) -> list[str]:
    """Return the names of all configs."""
    return names(inbox, "config")


def read_config(inbox: Inbox, name: str) -> str:
    """Return the text of a config; RequestError where there is none."""
    content = existing(inbox, "config", name).read_bytes()
    _require_small(content)
    return content.decode("utf-8")


def config_problems(inbox: Inbox, text: str) -> list[Problem]:
    """Return everything that is wrong with the text of a params.yaml."""
    try:
        _require_plain(text)
        with workbench(inbox) as bench:
            path = bench / PARAMS
            path.write_text(text, encoding="utf-8")
            return _file_problems(path)
    except RequestError as error:
        return list(error.problems)


def config_values(inbox: Inbox, name: str) -> dict[str, Any]:
    """Return the values of a valid config, by names such as `train.rank`.

    Raises:
        RequestError: there is none of this name.
        ParamsError: it is not valid, as one of another version can be.
    """
    text = read_config(inbox, name)
    if problems := config_problems(inbox, text):
        raise ParamsError(f"the config {name} is not valid", problems)
    return flat(yaml.safe_load(text))


def flat(document: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values of a params document by names such as `train.rank`."""
    return {
        f"{section}.{key}": value
        for section, values in document.items()
        for key, value in values.items()
    }


def _preset(root: Path, name: str) -> Path:
    path = root / "presets" / f"{require_name('preset', name)}.yaml"
    if not path.is_file():
        known = ", ".join(row["preset"] for row in presets(root))
        problem = Problem("preset", f"there is no {name}", f"There are: {known}.")
        raise RequestError("This preset is not here", [problem])
    return path


def _description(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    words = []
    for line in lines:
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    return " ".join(words)


def _with_trigger(source: Path, trigger: str) -> dict[str, Any]:
    """Return what changes with the trigger: itself, and the prompts that hold it."""
    document = yaml.safe_load(source.read_text(encoding="utf-8"))
    before = re.compile(rf"\b{re.escape(document['caption']['trigger'])}\b")
    prompts = {
        name: [before.sub(lambda _: trigger, text) for text in texts]
        for name, texts in flat(document).items()
        if isinstance(texts, list) and any(isinstance(t, str) and before.search(t) for t in texts)
    }
    return {"caption.trigger": trigger, **prompts}


def _one_folder(source: Path) -> dict[str, Any]:
    """Return what goes with a share of the pictures that is held out: there is one folder."""
    document = yaml.safe_load(source.read_text(encoding="utf-8"))
    return {"prepare.validation_images": document["prepare"]["images"]}


def _change_problem(key: str, value: Any) -> Problem | None:
    if key in LOCATIONS:
        return Problem(key, "names files of the server", _LOCATION_REMEDY)
    if key in _REPOSITORIES and value is not None and not _is_repository(value):
        return Problem(key, f"{shown(str(value))} is no repository", "Write OWNER/NAME of the Hub.")
    if key == _TRAINING_ADAPTER and value is not None and not _is_hub_file(value):
        return Problem(key, "is no file of a repository", "Give repository, revision and file.")
    return None


def _is_repository(value: object) -> bool:
    return isinstance(value, str) and ".." not in value and bool(_REPOSITORY.fullmatch(value))


def _is_hub_file(value: object) -> bool:
    if not isinstance(value, dict) or not _is_repository(value.get("repository")):
        return False
    file = value.get("file")
    return isinstance(file, str) and ".." not in file and bool(_FILE.fullmatch(file))


def _require_plain(text: str) -> None:
    """Raise RequestError on YAML that is too long or too deep, or has aliases: they can explode."""
    _require_small(text.encode("utf-8", "replace"))
    depth = 0
    try:
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken | yaml.AnchorToken | yaml.TagToken):
                what = "has anchors, aliases or tags"
                raise _refused(Problem("config", what, "Write every value out."))
            depth += _step(token)
            if depth > CONFIG_DEPTH:
                what = f"is more than {CONFIG_DEPTH} levels deep"
                raise _refused(Problem("config", what, "See presets for a complete file."))
    except yaml.YAMLError as error:
        raise _refused(Problem("config", f"is no YAML: {error}", "Correct it.")) from error


def _step(token: yaml.Token) -> int:
    if isinstance(
        token,
        yaml.BlockMappingStartToken
        | yaml.BlockSequenceStartToken
        | yaml.FlowMappingStartToken
        | yaml.FlowSequenceStartToken,
    ):
        return 1
    ends = yaml.BlockEndToken | yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken
    return -1 if isinstance(token, ends) else 0


def _require_small(content: bytes) -> None:
    if len(content) > CONFIG_BYTES:
        what = f"has {len(content)} bytes, more than the {CONFIG_BYTES} allowed"
        raise _refused(Problem("config", what, "Shorten its prompts."))


def _file_problems(path: Path) -> list[Problem]:
    try:
        load_params(path)
    except ParamsError as error:
        # Of the server's own path, a client has no use.
        return [
            Problem(each.where.replace(f"{path}:", "line "), each.what, each.remedy)
            for each in error.problems
        ] or [Problem("config", str(error).replace(str(path), "it"), "See presets.")]
    return []


def _refused(problem: Problem) -> RequestError:
    return RequestError("This config is refused", [problem])
