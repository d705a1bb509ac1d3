"""Everything -> one web page that needs no network, the map of the blocks, workflows for ComfyUI.

Reads   --manifest manifest.json of `fetch`; --adapter the LoRA; and the folders of the stages:
        --prepared, --captioned, --trained, --split, --rendered, --attributed, --evaluated,
        --slimmed
Writes  index.html, block-map.svg, comfyui/ (workflows, and README.md: which file goes where)
Params  all sections: the page shows every one of them

Needs no torch.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from stages.contracts.errors import Problem, TableError
from stages.contracts.params import Params, Section
from stages.contracts.tables import STRENGTHS, read_table
from stages.exporting.comfyui import Finished, comfyui_files
from stages.imaging.heatmap import Scale, colour_ramp, difference, scale_levels
from stages.imaging.metrics import Picture
from stages.reporting.evidence import Evidence, Folders, read_evidence
from stages.reporting.gallery import HeatmapLook
from stages.reporting.page import write_page
from stages.runtime.console import run_stage
from stages.runtime.outputs import replace_folder

_RAMP_COLOURS: Final = 33
_SLIM: Final = "adapter-slim.safetensors"
_MEGABYTE: Final = 1_000_000
_log = logging.getLogger(__name__)


def report(*sections: Section, out: Path, **folders: Path) -> None:
    """Write the report of one run; `sections` are all of params.yaml in its order.

    Raises:
        TableError: an earlier stage's output is missing or incomplete; all of them are named.
    """
    named: dict[str, Any] = dict(zip(Params.model_fields, sections, strict=True))
    params = Params(**named)
    evidence = read_evidence(Folders(**folders))
    page = write_page(evidence, params, _look(evidence, params))
    workflows = comfyui_files(_finished(evidence, params), params)
    with replace_folder(out) as work:
        (work / "index.html").write_text(page.html, encoding="utf-8")
        (work / "block-map.svg").write_text(page.block_map, encoding="utf-8")
        (work / "comfyui").mkdir()
        for name, text in workflows.items():
            (work / "comfyui" / name).write_text(text, encoding="utf-8", newline="\n")
    size = len(page.html.encode()) / _MEGABYTE
    _log.info("report: %.1f MB, open %s", size, out / "index.html")


def _finished(evidence: Evidence, params: Params) -> Finished:
    """Return what ComfyUI is to use; paths are shown as params and dvc.yaml write them.

    Raises:
        TableError: the strength sweep or the block vector is missing.
    """
    folders = evidence.folders
    vector = folders.slimmed / "retrain" / "inspire.txt"
    if not vector.is_file():
        problem = Problem(str(vector), "missing", "Run `dvc repro slim`.")
        raise TableError("The workflows for ComfyUI cannot be written", [problem])
    return Finished(
        adapter=folders.adapter,
        shown=params.split.adapter,
        slim=folders.slimmed / _SLIM,
        shown_slim=f"data/slim/{_SLIM}",
        sweep=read_table(STRENGTHS, folders.evaluated / "strengths.csv"),
        block_vector=vector.read_text(encoding="utf-8"),
    )


def _look(evidence: Evidence, params: Params) -> HeatmapLook:
    top = evidence.metrics["evaluate"]["heatmap_top"]
    scale = Scale(top, shared=True)

    def draw(picture: Path, reference: Path) -> npt.NDArray[np.uint8]:
        return scale_levels(difference(_load(picture), _load(reference)), scale)

    return HeatmapLook(
        draw=draw,
        ramp=colour_ramp(params.evaluate.colour_map, _RAMP_COLOURS),
        top=top,
        opacity=params.evaluate.heatmap_opacity,
        shared=params.evaluate.heatmap_scale == "shared",
    )


def _load(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def main() -> None:
    """Run the stage as dvc.yaml does."""
    run_stage(
        report,
        sections=(
            "model",
            "sampling",
            "prompts",
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
            "review",
        ),
        paths=(
            "manifest",
            "adapter",
            "prepared",
            "captioned",
            "trained",
            "split",
            "rendered",
            "attributed",
            "evaluated",
            "slimmed",
            "out",
        ),
    )


if __name__ == "__main__":
    main()
