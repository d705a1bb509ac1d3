"""Settings to and from other trainers, as files: commands of `python -m stages.train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from stages.contracts.errors import ParamsError, Problem
from stages.contracts.params import Params, load_params
from stages.exporting.ai_toolkit import write_ai_toolkit
from stages.exporting.ai_toolkit_reading import foreign_architecture, read_ai_toolkit
from stages.exporting.converted import converted_folder
from stages.exporting.kohya import write_kohya

_DATASET: Final = "data/caption/dataset"
_MANIFEST: Final = Path("data/fetch/manifest.json")


def export_config(out: Path, *, params: Path, to: str) -> str:
    """Write this run as another trainer's configuration; say what it could not take along.

    Raises:
        ParamsError: the params are not valid, or `out` exists.
        WeightsError: a config of the base model, or stage fetch's manifest, is broken.
    """
    _require_new(out)
    text, remarks = _WRITERS[to](load_params(params))
    _write(out, text)
    return f"{out}: for {to}; its paths are from this folder\n{_told(remarks)}"


def import_config(file: Path, out: Path, *, params: Path) -> str:
    """Write params with the values of an ai-toolkit YAML; say what they could not take along.

    What that file says nothing of is as in --params: begin with the preset of the base model, such
    as presets/flux1-dev-24gb.yaml.

    Raises:
        ParamsError: the file is not ai-toolkit's or is for another base model than FLUX.1, what it
            says is no valid params, or `out` exists.
    """
    _require_new(out)
    load_params(params)
    found, remarks = read_ai_toolkit(_process(file))
    content: dict[str, dict[str, Any]] = yaml.safe_load(params.read_text(encoding="utf-8"))
    for section, values in found.items():
        content[section] |= values
    _follow_trigger(content, found, remarks)
    part = out.with_name(f"{out.name}.part")
    head = f"# The settings of {file.name} (ai-toolkit) on those of {params.name}.\n"
    _write(part, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))
    try:
        load_params(part)
    except ParamsError as error:
        problems = [
            Problem(each.where.replace(str(part), str(file)), each.what, each.remedy)
            for each in error.problems
        ]
        raise ParamsError(f"{file} gives no valid params", problems) from None
    else:
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    taken = ", ".join(f"{name}.{key}" for name, values in found.items() for key in values)
    return f"{out}: taken from {file.name}: {taken}\n{_told(remarks)}"


def _follow_trigger(
    content: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], remarks: list[str]
) -> None:
    """Put the trigger where ai-toolkit's [trigger] stands, and in the place of the params' own."""
    own = found.get("caption", {}).get("trigger")
    samples = content["encode"]["sample_prompts"]
    trigger = content["caption"]["trigger"]
    content["encode"]["sample_prompts"] = [text.replace("[trigger]", trigger) for text in samples]
    if own is None:
        remarks.append("trigger_word: none in the file; caption.trigger is that of --params")
        return
    shown = (*content["prompts"]["develop"], *content["prompts"]["held_out"])
    if any(own not in text for text in (*shown, *content["attribute"]["prompts"])):
        for section, key in (
            ("prompts", "develop"),
            ("prompts", "held_out"),
            ("attribute", "prompts"),
        ):
            content[section][key] = [
                text if own in text else f"{own}, {text}" for text in content[section][key]
            ]
        remarks.append("prompts: ai-toolkit has none for the lens; the trigger stands before ours")


def _to_ai_toolkit(params: Params) -> tuple[str, list[str]]:
    return write_ai_toolkit(params, _DATASET, converted_folder(params.fetch, _MANIFEST))


def _to_kohya(params: Params) -> tuple[str, list[str]]:
    return write_kohya(params, _DATASET)


_WRITERS: Final = {"ai-toolkit": _to_ai_toolkit, "kohya": _to_kohya}


def _process(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        process = document["config"]["process"][0]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = Problem(str(file), f"cannot be read ({error})", "Name an ai-toolkit YAML.")
        raise ParamsError("No configuration to import", [problem]) from error
    except (KeyError, IndexError, TypeError) as error:
        problem = Problem(str(file), "has no config.process", "Name an ai-toolkit YAML.")
        raise ParamsError("No configuration to import", [problem]) from error
    if not isinstance(process, dict):
        problem = Problem(str(file), "config.process has no settings", "Name an ai-toolkit YAML.")
        raise ParamsError("No configuration to import", [problem])
    if other := foreign_architecture(process):
        what = f"is for another base model than FLUX.1 (model.{other})"
        problem = Problem(str(file), what, "Name a file with `is_flux: true` or `arch: flux`.")
        raise ParamsError("No configuration to import", [problem])
    return process


def _require_new(out: Path) -> None:
    if out.exists():
        problem = Problem(str(out), "exists already", "Name another file, or remove it.")
        raise ParamsError("Nothing is written", [problem])


def _write(out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8", newline="\n")


def _told(remarks: Sequence[str]) -> str:
    return "\n".join(["not taken along:", *(f"  - {remark}" for remark in remarks)])
