"""No process outlives the flow that wanted it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import processes
from flows.environment import child_environment
from stages.contracts.stopping import SAVING_S
from tests.flows.conftest import processes_with, wait_until

STUBBORN = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
SLEEPING = "print('ready', flush=True); time.sleep(600)  # "


@pytest.fixture
def mark() -> Iterator[str]:
    """A word that no other process has in its command line."""
    word = uuid.uuid4().hex
    yield word
    assert processes_with(word) == [], "the test left a process behind"


@pytest.fixture(autouse=True)
def _allow_starts() -> Iterator[None]:
    yield
    processes.allow_starts()


def run(
    directory: Path,
    *command: str,
    on_line: Callable[[str], None] = lambda _line: None,
    timeout_s: float | None = None,
) -> processes.Finished:
    """Run a command as a stage is run."""
    return processes.run_streamed(
        command,
        directory=directory,
        environment=child_environment(),
        on_line=on_line,
        timeout_s=timeout_s,
    )


def test_lines_arrive_while_the_command_runs(tmp_path: Path) -> None:
    """Logs are live: a line is seen before the next one is written, stderr in its place."""
    script = "echo one; while [ ! -f go ]; do sleep 0.02; done; echo two >&2; exit 7"
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        (tmp_path / "go").touch()

    finished = run(tmp_path, "sh", "-c", script, on_line=on_line)
    assert seen == ["one", "two"]
    assert finished == processes.Finished(7, ("one", "two"), timed_out=False)


def test_python_of_a_stage_is_this_interpreter(tmp_path: Path) -> None:
    """A flow works without an activated virtual environment."""
    finished = run(tmp_path, "python", "-c", "import sys; print(sys.prefix)")
    assert finished.lines == (sys.prefix,)


def test_timeout_ends_the_whole_group(tmp_path: Path, mark: str) -> None:
    """A time-out reaches the child of the child, which holds the GPU."""
    script = f'{sys.executable} -c "import time; {SLEEPING}{mark}"; echo over'
    start = time.monotonic()
    finished = run(tmp_path, "sh", "-c", script, timeout_s=1.0)
    assert finished.timed_out
    assert time.monotonic() - start < 15


def test_exception_stops_the_command_and_passes_its_last_words(tmp_path: Path, mark: str) -> None:
    """Ctrl-C gives a stage the time to save its state and to say so."""
    script = (
        "import time\ntry:\n  print('ready', flush=True); time.sleep(600)\n"
        f"except KeyboardInterrupt:\n  print('state saved')  # {mark}"
    )
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "ready":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, sys.executable, "-c", script, on_line=on_line)
    assert seen == ["ready", "state saved"]


def test_command_that_ignores_interrupts_is_killed(mark: str) -> None:
    """The ladder ends with SIGKILL, for processes that catch everything else."""
    program = STUBBORN + f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPING}{mark}"
    process = processes.start_guarded(
        [sys.executable, "-c", program], grace_s=0.2, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    processes.stop(process, grace_s=0.2)
    assert process.returncode == 128 + 9


def test_a_stage_has_longer_than_its_launcher_gives() -> None:
    """Or else the flow would kill what is still saving its state on several GPUs."""
    assert processes.STAGE_GRACE_S > SAVING_S > processes.INTERRUPT_GRACE_S


def test_what_a_command_leaves_behind_is_killed(tmp_path: Path, mark: str) -> None:
    """A worker that a stage forgot holds neither memory nor the pipe that we read."""
    script = f'{sys.executable} -c "import time; time.sleep(600)  # {mark}" & echo started'
    assert run(tmp_path, "sh", "-c", script).lines == ("started",)


def test_a_descendant_in_a_session_of_its_own_ends_too(tmp_path: Path, mark: str) -> None:
    """Prefect's worker starts each run in one: killed, it left the run to itself."""
    ready, told = tmp_path / "ready", tmp_path / "told"
    program = (
        "import signal, sys, time; from pathlib import Path\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (Path({str(told)!r}).touch(), sys.exit()))\n"
        f"Path({str(ready)!r}).touch(); time.sleep(600)  # {mark}"
    )
    starter = (
        "import os, subprocess, sys, time; from pathlib import Path\n"
        f"subprocess.Popen([sys.executable, '-c', {program!r}], start_new_session=True)\n"
        f"while not Path({str(ready)!r}).exists(): time.sleep(0.02)\n"
        "os.kill(os.getpid(), 9)"
    )
    finished = run(tmp_path, sys.executable, "-c", starter)
    assert finished.exit_code == 128 + 9
    assert told.exists()


def test_interrupt_reaches_children_of_a_background_shell(
    mark: str, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """Both nohup and `&` start programs with SIGINT ignored; a stage must not inherit that."""
    program = f"import signal; print(signal.getsignal(signal.SIGINT))  # {mark}"
    driver = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from pathlib import Path; from flows import processes\n"
        f"processes.run_streamed([sys.executable, '-c', {program!r}], directory=Path('.'), "
        "environment=os.environ, on_line=print)"
    )
    shown, _ = start_python("-c", driver).communicate(timeout=120)
    assert "default_int_handler" in shown


def test_kill_of_the_flow_leaves_no_orphan(
    mark: str, start_python: Callable[..., subprocess.Popen[str]]
) -> None:
    """A kill -9 gives the flow no chance to clean up: the guard does it."""
    command = ["sh", "-c", f'{sys.executable} -c "import time; time.sleep(600)  # {mark}"; :']
    driver = start_python(
        "-c",
        "import os; from pathlib import Path; from flows import processes\n"
        f"processes.run_streamed({command!r}, directory=Path('.'), environment=os.environ, "
        "on_line=print)",
    )
    wait_until(lambda: len(processes_with(mark)) >= 3, "driver, shell and sleeper start")
    driver.kill()
    wait_until(lambda: processes_with(mark) == [], "the guard stops the group")


def test_stop_all_ends_commands_of_other_threads_and_refuses_new_ones(
    tmp_path: Path, mark: str
) -> None:
    """Cancellation arrives in one thread and must end what all have started, for good."""
    ready = threading.Event()
    ended: list[processes.Finished] = []

    def work() -> None:
        program = f"import time; {SLEEPING}{mark}"
        ended.append(
            run(tmp_path, sys.executable, "-c", program, on_line=lambda _line: ready.set())
        )

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(30)
    processes.stop_all()
    thread.join(10)
    assert len(ended) == 1
    assert ended[0].exit_code != 0
    assert processes.is_stopping()
    with pytest.raises(processes.StoppedError, match="nothing new is started"):
        run(tmp_path, "true")


def test_guard_with_a_dead_parent_starts_nothing(tmp_path: Path) -> None:
    """If the flow dies before its guard is armed, no signal comes: the guard looks for itself."""
    command = processes.guarded(["touch", str(tmp_path / "started")], 1.0)
    command[command.index(str(os.getpid()))] = "1"
    assert subprocess.run(command, check=False).returncode == 128 + 15
    assert not (tmp_path / "started").exists()
