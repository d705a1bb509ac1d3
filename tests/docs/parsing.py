"""Parses command lines with the very parsers that would run them, and runs nothing.

`python -m tests.docs.parsing` reads a JSON list of command lines, each a list of words beginning
with `python -m` or `dvc`, and writes what is wrong with each, "" if nothing is. A process of its
own, since modules are run up to their `parse_args`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from dvc.cli import parse_args
from dvc.cli.parser import DvcParser

from stages.contracts.params import Params

ROOT = Path(__file__).parents[2]
_STAGES = set(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
_OURS = {"stages", "flows", "mixer", "benchmarks", "docs", "nano"}


class RefusedError(Exception):
    """DVC's parser does not accept its arguments."""


class Parsed(BaseException):
    """The outermost parser has accepted its arguments."""


def fault_of(words: Sequence[str]) -> str:
    """Return what is wrong with a command line, "" if nothing is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return _dvc_fault(words[1:]) if words[0] == "dvc" else _module_fault(words[2:])
    except SystemExit as error:
        return "" if not error.code else said.getvalue().strip() or f"exit {error.code}"


def _module_fault(words: Sequence[str]) -> str:
    module, arguments = words[0], list(words[1:])
    spec = importlib.util.find_spec(module)
    if spec is None:
        return f"there is no module {module}"
    if module.partition(".")[0] not in _OURS:
        return ""
    package = spec.submodule_search_locations is not None
    target = f"{module}.__main__" if package else module
    found = importlib.util.find_spec(target)
    if found is None or found.origin is None:
        return f"{module} cannot be run"
    source = Path(found.origin).read_text(encoding="utf-8")
    if "__main__" not in source and not package:
        return f"{module} runs nothing"
    if not re.search(r"parse_args\(|run_stage\(|parse_arguments\(", source):
        return f"{module} takes no arguments" if arguments else ""
    sys.argv = [str(found.origin), *arguments]
    try:
        runpy.run_module(target, run_name="__main__")
    except Parsed:
        return ""
    return f"{module} did not parse its arguments"


def _dvc_fault(arguments: Sequence[str]) -> str:
    try:
        asked = vars(parse_args(list(arguments)))
    except RefusedError as error:
        return f"dvc: {error}"
    if arguments[0] == "repro" and (unknown := set(asked["targets"] or []) - _STAGES - {"STAGE"}):
        return f"no stages: {sorted(unknown)}"
    changed = [one.partition("=")[0].lstrip("+~") for one in asked.get("set_param") or []]
    return "".join(f"no parameter {name}. " for name in changed if not _is_parameter(name))


def _is_parameter(name: str) -> bool:
    section, _, key = name.partition(".")
    field = Params.model_fields.get(section)
    return field is not None and key in field.annotation.model_fields  # type: ignore[union-attr]


def stop_after_parsing() -> None:
    """Make every outermost `ArgumentParser` raise Parsed where its program would begin."""
    parse, depth = argparse.ArgumentParser.parse_args, 0

    def parse_and_stop(self: argparse.ArgumentParser, *rest: Any, **named: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            parsed = parse(self, *rest, **named)
        finally:
            depth -= 1
        if depth == 0 and not self.prog.startswith("dvc"):
            raise Parsed
        return parsed

    def refuse(_self: DvcParser, message: str, _command: object = None) -> None:
        raise RefusedError(message)

    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[method-assign]
    DvcParser.error = refuse


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    stop_after_parsing()
    commands = json.load(sys.stdin)
    json.dump([fault_of(command) for command in commands], sys.stdout)
