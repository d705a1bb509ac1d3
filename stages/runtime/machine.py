"""What this machine lacks for what params.yaml asks for; known without any weights.

    python -m stages.runtime.machine [--params params.yaml]

exits with 1 and one message, before anything is downloaded or encoded, where a stage could not run.
Stages that need none of it warn at their start, since another machine may run the rest.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from stages.contracts.errors import BlocklensError, HardwareError, Problem
from stages.contracts.params import ModelParams, Params, load_params
from stages.contracts.params.packages import OPTIONAL_PACKAGES

_EIGHT_BIT_REMEDY = "Or choose adamw (the same rule, larger) or adafactor (smaller still)."


def machine_problems(params: Params) -> list[Problem]:
    """Return what any stage would refuse on this machine."""
    optimiser = params.train.optimiser
    # torch takes seconds to import, and is asked only where something needs a GPU.
    asks = (
        params.model.quantisation == "nf4"
        or params.model.offload == "group"
        or optimiser == "adamw8bit"
    )
    device = _device_type() if asks else "cpu"
    return [*model_problems(params.model, device), *optimiser_problems(optimiser, device)]


def model_problems(model: ModelParams, device: str) -> list[Problem]:
    """Return what keeps the base model from being run as `model` says on cpu or cuda."""
    problems = []
    package = OPTIONAL_PACKAGES.get(("model", "quantisation", model.quantisation))
    where = f"model.quantisation: {model.quantisation}"
    if package is not None and find_spec(package) is None:
        what = f"needs the package {package}, which is not installed"
        problems.append(Problem(where, what, "pip install 'blocklens[gpu]', or set it to none."))
    if model.quantisation == "nf4" and device != "cuda":
        what = f"needs a CUDA device, this run's is {device}"
        problems.append(Problem(where, what, "Use int8 or fp8 without one, or set it to none."))
    if model.offload == "group" and device != "cuda":
        what = f"needs a CUDA device to offload from, this run's is {device}"
        problems.append(Problem("model.offload: group", what, "Set it to none."))
    return problems


def optimiser_problems(name: str, device: str) -> list[Problem]:
    """Return what keeps the optimiser `name` from running on cpu or cuda."""
    package = OPTIONAL_PACKAGES.get(("train", "optimiser", name))
    if package is None:
        return []
    problems = []
    where = f"train.optimiser: {name}"
    if find_spec(package) is None:
        what = f"needs the package {package}, which is not installed"
        remedy = f"Run `pip install 'blocklens[gpu]'`. {_EIGHT_BIT_REMEDY}"
        problems.append(Problem(where, what, remedy))
    if device != "cuda":
        what = f"needs a CUDA device, this run's is {device}"
        problems.append(Problem(where, what, _EIGHT_BIT_REMEDY))
    return problems


def _device_type() -> str:
    from stages.runtime.device import device_name

    return device_name().partition(":")[0]


def main() -> None:
    """Check the machine for all stages of a params file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="params file")
    try:
        problems = machine_problems(load_params(parser.parse_args().params))
        if problems:
            raise HardwareError("This machine cannot run all stages of params.yaml", problems)
    except BlocklensError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
