"""What a machine cannot do is known before anything is read."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.contracts.params import Params, load_params
from stages.runtime import console, machine
from stages.runtime.machine import machine_problems

ROOT = Path(__file__).parents[2]


def asking(**model: object) -> Params:
    """Return the demo's params with a base model that is run in another way."""
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"model": params.model.model_copy(update=model)})


def test_the_demo_runs_anywhere_and_asks_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to say, and torch, which takes seconds to import, is not asked."""
    monkeypatch.setattr(machine, "_device_type", lambda: pytest.fail("asked for the device"))
    assert machine_problems(load_params(ROOT / "params.yaml")) == []


@pytest.mark.parametrize(
    ("device", "installed", "expected"),
    [
        ("cpu", False, ["bitsandbytes", "CUDA", "bitsandbytes", "CUDA"]),
        ("cuda", False, ["bitsandbytes", "bitsandbytes"]),
        ("cpu", True, ["CUDA", "CUDA"]),
        ("cuda", True, []),
    ],
)
def test_all_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, installed: bool, expected: list[str]
) -> None:
    """Packages and GPU, of the base model and of the optimiser, in one list."""
    monkeypatch.setattr(machine, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setenv("BLOCKLENS_DEVICE", device)
    params = asking(quantisation="nf4", precision="bfloat16")
    train = params.train.model_copy(update={"optimiser": "adamw8bit"})
    problems = machine_problems(params.model_copy(update={"train": train}))
    assert [next(word for word in set(expected) if word in p.what) for p in problems] == expected
    assert {problem.where for problem in problems} <= {
        "model.quantisation: nf4",
        "train.optimiser: adamw8bit",
    }


@pytest.mark.parametrize(("sections", "warnings"), [(("prepare",), 1), (("train", "model"), 0)])
def test_early_stages_warn_of_later_ones(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    sections: tuple[str, ...],
    warnings: int,
) -> None:
    """A stage that needs it refuses by itself; the others may be run here on purpose."""
    monkeypatch.setenv("BLOCKLENS_DEVICE", "cpu")
    with caplog.at_level(logging.WARNING):
        console._warn_of_what_is_to_come(asking(offload="group"), sections)
    assert len(caplog.messages) == warnings
    for message in caplog.messages:
        assert message.startswith("a later stage cannot run on this machine: model.offload: group")


def test_the_command_refuses_in_one_message(tmp_path: Path) -> None:
    """`make run` begins with it: no download and no encoding for a run that cannot end."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    document["train"]["optimiser"] = "adamw8bit"
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    command = [sys.executable, "-m", "stages.runtime.machine", "--params", str(path)]
    environment = {"PATH": "", "BLOCKLENS_DEVICE": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "train.optimiser: adamw8bit: needs a CUDA device, this run's is cpu" in done.stderr
    assert "Traceback" not in done.stderr
