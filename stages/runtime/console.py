"""From the command line to a stage's function: flags, params, logging, exit code.

Only stages call this. It decides how a stage is run, never what it writes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import stages
from stages.contracts.errors import BlocklensError, ParamsError
from stages.contracts.params import Params, load_params
from stages.runtime.environment import require_numbers
from stages.runtime.machine import machine_problems
from stages.runtime.state_folder import own_turn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_log = logging.getLogger("blocklens")


Explain = Callable[[Path, ParamsError], ParamsError]
"""Adds to what is wrong with a params file what only someone beyond it knows."""


@dataclass(frozen=True)
class Command:
    """Something else that a stage's file does: `python -m stages.STAGE NAME PATH…`.

    `function` takes the paths in order and returns what is shown. One that is named, as in
    `stages.exporting.trainer_files:export_config`, is imported when it is asked for: what it needs
    is no dependency of the stage, whose results it has no part in.

    `flags` are taken as keywords: a file with a default (`--params params.yaml`), or one of several
    words (`--to kohya`), which must be given.
    """

    function: Callable[..., str] | str
    paths: Sequence[str]
    flags: Mapping[str, Path | Sequence[str]] = field(default_factory=dict)


def run_stage(
    function: Callable[..., None],
    *,
    sections: Sequence[str],
    paths: Sequence[str],
    explain: Explain | None = None,
    commands: Mapping[str, Command] | None = None,
) -> None:
    """Call `function(*sections of params.yaml, **paths from flags)` and exit.

    Where the first argument is one of `commands`, that is run instead.

    A section may be narrowed to a value (`model.text_tokens`), as in dvc.yaml: then the stage reads
    nothing else of it, and does not run again when the rest changes.

    Params that are refused go through `explain` first, if there is one.

    Exit code 0 on success; 1 with one message and no traceback when the input is at fault;
    130 and 143 on Ctrl-C and SIGTERM.
    """
    name = getattr(function, "__name__", "stage")
    if commands and len(sys.argv) > 1 and sys.argv[1] in commands:
        _run_command(name, sys.argv[1], commands[sys.argv[1]])
        return
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=function.__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file")
    if commands:
        parser.epilog = f"Or: python -m stages.{name} {{{','.join(commands)}}} --help"
    for path in paths:
        parser.add_argument(f"--{path.replace('_', '-')}", type=Path, required=True)
    arguments = vars(parser.parse_args())
    prepare_process()
    try:
        require_numbers()
        params = _load(arguments.pop("params"), explain)
        _warn_of_what_is_to_come(params, sections)
        with own_turn(name):
            function(*(attrgetter(section)(params) for section in sections), **arguments)
    except BlocklensError as error:
        _log.error("%s: %s", name, error)
        sys.exit(1)
    except KeyboardInterrupt:
        _log.error("%s: interrupted; run `dvc repro` to go on", name)
        sys.exit(130)


def _run_command(stage: str, name: str, command: Command) -> None:
    function = _named(command.function)
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage} {name}", description=function.__doc__
    )
    for path in command.paths:
        parser.add_argument(path, type=Path)
    for flag, value in command.flags.items():
        if isinstance(value, Path):
            parser.add_argument(f"--{flag}", type=Path, default=value)
        else:
            parser.add_argument(f"--{flag}", choices=value, required=True)
    arguments = vars(parser.parse_args(sys.argv[2:]))
    paths = [arguments.pop(path) for path in command.paths]
    prepare_process()
    try:
        shown = function(*paths, **arguments)
    except BlocklensError as error:
        _log.error("%s: %s", name, error)
        sys.exit(1)
    sys.stdout.write(f"{shown}\n")


def _named(function: Callable[..., str] | str) -> Callable[..., str]:
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., str] = getattr(import_module(module), name)
    return found


def _warn_of_what_is_to_come(params: Params, sections: Sequence[str]) -> None:
    """Say what this machine cannot do, in stages that need none of it and could run for hours."""
    if "model" in sections:  # such a stage refuses what it cannot do
        return
    for problem in machine_problems(params):
        _log.warning("a later stage cannot run on this machine: %s", problem)


def _load(path: Path, explain: Explain | None) -> Params:
    try:
        return load_params(path)
    except ParamsError as error:
        if explain is None:
            raise
        # Without the cause: the message is whole, and the explanation may have met a token.
        raise explain(path, error) from None


def prepare_process() -> None:
    """Set up logging to stderr, die with the parent, and turn SIGTERM into a clean exit."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # One line per request otherwise: httpx is Prefect's client, httpx2 huggingface_hub's.
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    # What was imported stays: else the collector goes through it again and again, and at the end.
    gc.freeze()
    if sys.platform == "linux":
        # Without it, kill -9 of dvc leaves the stage, and the GPU, running.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # It may have died while our libraries were imported, which takes seconds.
        if os.getppid() != stages.STARTED_BY:
            sys.exit(128 + signal.SIGTERM)


def _terminate(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)
