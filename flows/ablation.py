"""An ablation of the training as DVC experiments, and its table as a page.

    python -m flows.ablation [--grid flows/ablation.yaml] [--out docs/ablation.md]

Trains params.yaml as it is but for the grid's base, and once for each value of the grid, up to
stage train and one at a time. Cells that are there already at this commit are not run again; a
stopped command goes on where it was. `dvc exp show` has the same table, `dvc exp apply NAME` brings
a cell into the working tree.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from flows import processes
from flows.experiments.ablation_cells import DEFAULT, Cell, load_cells
from flows.experiments.dvc_experiments import (
    PARAMS,
    Experiment,
    finished_experiments,
    require_committed,
    run_experiment,
)
from flows.graph import read_plan
from flows.repro import exclusive_run
from stages.contracts.errors import BlocklensError
from stages.contracts.params import SHARED_SECTIONS, Params, load_params

GRID: Final = Path("flows/ablation.yaml")
OUT: Final = Path("docs/ablation.md")
STAGE: Final = "train"
METRICS: Final = "data/train/metrics.json"

PAGE: Final = """\
# Ablation of the training

Written by `{command}`; do not edit.

Each row is one training, a DVC experiment of its own: the first with `params.yaml` as it is{based},
every other one with the one change that it names{follow}. Before training, validation loss
is {base:.6f}; improvement is the share of it that is gone in the chosen checkpoint (`train.select:
{select}`). One seed: a difference between rows holds for this dataset and this seed.

{table}

`dvc exp show` has all params and metrics of these experiments, `dvc exp apply NAME` brings one into
the working tree.
"""
_COLUMNS: Final = (
    "change",
    "validation loss",
    "improvement",
    "selected step",
    "trainable parameters",
    "adapter bytes",
    "experiment",
)

_log = logging.getLogger("flows.ablation")  # run as a program, __name__ is another


def ablate(root: Path, grid: Path) -> tuple[list[Cell], dict[str, Experiment]]:
    """Return the cells of a grid and their finished experiments, after running what is missing.

    Raises BlocklensError: the grid or params.yaml is not valid, inputs are not committed, another
    flow runs in this checkout, or a stage failed.
    """
    shared = {*SHARED_SECTIONS} - {"review"}
    sections = {*shared, *(stage.name for stage in read_plan(root, [STAGE]))}
    cells = load_cells(grid, root / PARAMS, sections)
    with exclusive_run(root):
        require_committed(root, load_params(root / PARAMS))
        missing = missing_cells(cells, finished_experiments(root, METRICS))
        _log.info("%d cells, %d of them to run", len(cells), len(missing))
        for number, cell in enumerate(missing, start=1):
            _log.info("%s: %d of %d", cell.name, number, len(missing))
            run_experiment(root, cell.name, STAGE, cell.settings, _log.info)
        return cells, finished_experiments(root, METRICS)


def missing_cells(cells: Sequence[Cell], finished: Mapping[str, Experiment]) -> list[Cell]:
    """Return the cells that no finished experiment of that name with those params is for."""
    return [
        cell
        for cell in cells
        if cell.name not in finished
        or Params.model_validate(finished[cell.name].params).model_dump(mode="json") != cell.params
    ]


def page(cells: Sequence[Cell], finished: Mapping[str, Experiment], command: str) -> str:
    """Return the Markdown page: one row per cell, from the metrics of its experiment."""
    rows = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 2), "---")]
    rows += [_row(cell, finished[cell.name].metrics) for cell in cells]
    followers = sorted({name for cell in cells for name in list(cell.changes)[1:]})
    leaders = sorted({cell.factor for cell in cells if len(cell.changes) > 1})
    follow = f" (and {_code(followers)} along with {_code(leaders)})" if followers else ""
    base = ", ".join(f"`{name}: {_yaml(value)}`" for name, value in cells[0].base.items())
    return PAGE.format(
        based=f" but {base}" if base else "",
        command=command,
        follow=follow,
        base=finished[cells[0].name].metrics["validation_loss_base"],
        select=cells[0].params["train"]["select"],
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ablation from the command line; exit code 1 with one message if it fails."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grid", type=Path, default=GRID, help=f"default: {GRID}")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT}")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("flows").setLevel(logging.INFO)
    try:
        processes.allow_starts()
        cells, finished = ablate(Path.cwd(), options.grid)
    except BlocklensError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        _log.info("stopped; finished cells are kept, and the same command goes on")
        sys.exit(130)
    text = page(cells, finished, _command(options.grid, options.out))
    work = options.out.with_name(f".{options.out.name}.new")
    work.write_text(text, encoding="utf-8")
    work.replace(options.out)
    sys.stdout.write(text)


def _command(grid: Path, out: Path) -> str:
    flags = [f" --grid {grid}"] if grid != GRID else []
    flags += [f" --out {out}"] if out != OUT else []
    return "python -m flows.ablation" + "".join(flags)


def _row(cell: Cell, metrics: Mapping[str, float]) -> tuple[str, ...]:
    return (
        f"`{cell.factor}: {_yaml(cell.value)}`" if cell.changes else DEFAULT,
        f"{metrics['validation_loss']:.6f}",
        f"{100 * metrics['improvement']:.1f} %",
        str(metrics["selected_step"]),
        f"{metrics['trainable_parameters']:,}",
        f"{metrics['adapter_bytes']:,}",
        f"`{cell.name}`",
    )


def _yaml(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _code(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
