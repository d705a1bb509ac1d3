"""Parameters of one run, written into params.yaml: there they show in the diff, as any change."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import load_params

PARAMS: Final = "params.yaml"
_NEVER_WRAP: Final = 10_000


class _Representer(RoundTripRepresenter):
    """ruamel.yaml's, with `null` written out as in our files."""

    def represent_none(self, _data: None) -> ScalarNode:
        """Return the node of a missing value."""
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(type(None), _Representer.represent_none)


def apply_overrides(root: Path, overrides: Mapping[str, Any]) -> None:
    """Write values into params.yaml, by names such as `train.rank`; comments and order stay.

    Raises:
        ParamsError: a name is no parameter, or the params would not be valid with the values; all
            problems at once. The file is as it was then.
    """
    path = root / PARAMS
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = _NEVER_WRAP
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    known = [f"{section}.{key}" for section, values in document.items() for key in values]
    if unknown := [_unknown(name, known) for name in overrides if name not in known]:
        raise ParamsError("The run's overrides name no parameters", unknown)
    for name, value in overrides.items():
        section, key = name.split(".")
        before = document[section][key]
        if before == value and isinstance(before, bool) == isinstance(value, bool):
            continue  # its line stays as it is
        if isinstance(before, list) and isinstance(value, list):
            before[:] = value  # in place, so that a list in one line stays in one
        elif isinstance(before, dict) and isinstance(value, dict):
            _update(before, value)
        else:
            document[section][key] = value
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        changed = Path(folder) / PARAMS
        changed.write_text(buffer.getvalue(), encoding="utf-8")
        try:
            load_params(changed)
        except ParamsError as error:
            problems = [
                Problem(each.where.replace(f"{folder}/", ""), each.what, each.remedy)
                for each in error.problems
            ]
            raise ParamsError(
                "params.yaml is not valid with the run's overrides", problems
            ) from error
        changed.replace(path)


def _update(before: dict[str, Any], after: Mapping[str, Any]) -> None:
    """Make two mappings equal; entries that stay as they are keep their lines and comments."""
    for name in before.keys() - after.keys():
        del before[name]
    for name, value in after.items():
        if name in before and before[name] == value:
            continue
        before[name] = CommentedMap(value) if isinstance(value, dict) else value
        if isinstance(value, dict):
            before[name].fa.set_flow_style()


def _unknown(name: str, known: list[str]) -> Problem:
    close = get_close_matches(name, known, n=1)
    remedy = f"Did you mean {close[0]!r}?" if close else "Names are SECTION.KEY of params.yaml."
    return Problem(name, "no such parameter", remedy)
