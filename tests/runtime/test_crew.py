"""Who computes items: this process, or a real Dask cluster of two processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dask
import pytest
from distributed import SpecCluster

from stages.contracts.errors import AdapterError, ClusterError
from stages.runtime import cluster, crew
from stages.runtime.crew import Setting, open_crew, ordered
from tests.runtime import errands
from tests.runtime.errands import Place, lacking, open_place

NUMBERS = range(8)
SQUARES = [number * number for number in NUMBERS]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for the notes of all processes; the environment names no cluster."""
    monkeypatch.delenv("BLOCKLENS_DASK", raising=False)
    return tmp_path / "notes"


@pytest.fixture(scope="module")
def workers() -> Iterator[SpecCluster]:
    """Two worker processes that outlive a run, as those of several machines do."""
    with cluster._local_cluster(2) as two:
        yield two


@pytest.fixture
def remote(workers: SpecCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setting[Place]:
    """What the two workers are asked with, by address."""
    workers.wait_for_workers(2)  # a nanny starts again what a test has killed
    monkeypatch.setenv("BLOCKLENS_DASK", workers.scheduler_address)
    return setting(tmp_path / "notes")


def setting(notes: Path, lacks: str = "") -> Setting[Place]:
    """What a process opens for the errands."""
    return Setting(open_place, lacking, Place(notes, lacks))


def counted(notes: Path, kind: str) -> Counter[str]:
    """How often each thing of a kind is in the notes."""
    lines = [line.split() for line in notes.read_text(encoding="utf-8").splitlines()]
    return Counter(what for each, what in lines if each == kind)


def test_without_a_cluster_this_process_does_it(notes: Path) -> None:
    """One session, opened at the first item and closed at the end."""
    with open_crew(setting(notes)) as here:
        assert not notes.exists()
        assert [*ordered(here, errands.square, NUMBERS)] == SQUARES
        assert [*here.each(errands.square, [2])] == [(0, 4)]
    own = str(os.getpid())
    assert counted(notes, "open") == counted(notes, "close") == {own: 1}


def test_workers_give_the_same_in_order(notes: Path, remote: Setting[Place]) -> None:
    """Order by index; one session per worker for two rounds, and none is left open at the end."""
    with open_crew(remote) as two:
        assert [*ordered(two, errands.square, NUMBERS)] == SQUARES
        assert sorted(two.each(errands.square, NUMBERS)) == [*enumerate(SQUARES)]
    opened = counted(notes, "open")
    assert len(opened) == 2
    assert str(os.getpid()) not in opened
    assert set(opened.values()) == {1}
    with open_crew(setting(notes.with_name("others"))) as two:  # waits for the two to close
        assert [*ordered(two, errands.square, NUMBERS)] == SQUARES
    assert counted(notes, "close") == opened


def test_a_killed_worker_costs_its_item(notes: Path, remote: Setting[Place]) -> None:
    """Kill -9 in the middle: that item is computed twice, every other one once."""
    with open_crew(remote) as two:
        assert [*ordered(two, errands.square_but_die_at_3, NUMBERS)] == SQUARES
    assert counted(notes, "item") == {str(n): 2 if n == 3 else 1 for n in NUMBERS}


def test_what_is_not_the_inputs_fault_is_tried_again(notes: Path, remote: Setting[Place]) -> None:
    """An item that stumbles once is computed, in a session that is opened anew."""
    with open_crew(remote) as two:
        assert [*ordered(two, errands.stumble_once, [5])] == [5]
    assert counted(notes, "item") == {"5": 2}
    assert sum(counted(notes, "open").values()) == 2


def test_the_inputs_fault_is_told_at_once(notes: Path, remote: Setting[Place]) -> None:
    """The error of the input comes as it is, with the worker's address, and is not tried again."""
    with (
        pytest.raises(AdapterError, match=r"cannot be read \(worker tcp://.*\n.*a.safetensors"),
        open_crew(remote) as two,
    ):
        list(two.each(errands.refuse, [1]))
    assert counted(notes, "item") == {"1": 1}


def test_workers_that_lack_something_are_all_named(notes: Path, remote: Setting[Place]) -> None:
    """Before any item: what each of them lacks, in one message."""
    with pytest.raises(ClusterError) as caught, open_crew(setting(notes, "weights")):
        pass
    assert len(caught.value.problems) == 2
    assert all(", weights: missing" in str(problem) for problem in caught.value.problems)


def test_other_software_is_refused(
    notes: Path, remote: Setting[Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of a package, or other code of ours, may compute other bits."""
    found = cluster.software()
    assert {"python", "torch", "distributed", "blocklens"} <= set(found)
    monkeypatch.setattr(cluster, "software", lambda: {**found, "torch": "1.0", "blocklens": "old"})
    with pytest.raises(ClusterError) as caught, open_crew(remote):
        pass
    assert len(caught.value.problems) == 4
    assert f"torch: {found['torch']}, the driver has 1.0. Install the same" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("local:0", "is no address of a cluster. Name a scheduler"),
        ("8 machines", "is no address of a cluster"),
        ("tcp://127.0.0.1:1", r"does not answer within 0.5 s \(OSError\)"),
        ("tcp://127.0.0.1", "does not answer"),
    ],
)
def test_no_cluster_at_that_place(
    place: str, told: str, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message that says what the variable holds and what to do."""
    monkeypatch.setenv("BLOCKLENS_DASK", place)
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    with (
        pytest.raises(ClusterError, match=rf"BLOCKLENS_DASK={place}: {told}"),
        open_crew(setting(notes)),
    ):
        pass


def test_without_the_package_there_is_a_message(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask is optional: who asks for a cluster without it is told what to install."""
    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    monkeypatch.setattr(crew, "find_spec", {}.get)
    with (
        pytest.raises(ClusterError, match=r"pip install 'blocklens\[dask\]'"),
        open_crew(setting(notes)),
    ):
        pass


def test_a_cluster_of_this_machine_leaves_the_threads_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads change how sums round: what this process starts later has to write the same bytes."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with cluster._local_cluster(1) as one:
        one.wait_for_workers(1)
    assert "OMP_NUM_THREADS" not in os.environ


def wait_for(count: int, local: SpecCluster) -> None:
    """Wait until the scheduler itself knows `count` workers."""
    until = time.monotonic() + 60.0
    while len(local.scheduler.workers) != count:
        assert time.monotonic() < until, f"the cluster never has {count} workers"
        time.sleep(0.05)


def test_a_cluster_that_ends_is_told(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler, no workers, an item that kills: the run ends with what to do, and goes on."""
    monkeypatch.setattr(cluster, "_CONNECT_S", 5.0)
    monkeypatch.setattr(cluster, "_POLL_S", 0.2)
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        alone = cluster._local_cluster(1)
    monkeypatch.setenv("BLOCKLENS_DASK", alone.scheduler_address)
    with open_crew(setting(notes)) as one:
        with pytest.raises(ClusterError, match="an item killed its worker again and again"):
            list(one.each(errands.die, [0]))
        wait_for(1, alone)  # the nanny has started it again
        alone.scale(0)
        wait_for(0, alone)
        monkeypatch.setattr(cluster, "_WORKERLESS_S", 0.5)
        with pytest.raises(ClusterError, match=r"no worker for 0.5 s\. Start workers\."):
            list(one.each(errands.square, [0]))
        alone.close()
        with pytest.raises(ClusterError, match="the scheduler is gone"):
            list(one.each(errands.square, [0]))


def test_a_worker_that_dies_while_it_starts_costs_nothing(
    notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask gives up then: a kill in those seconds ended the stage with a traceback."""
    killed: list[int] = []

    def kill_the_first() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for path in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                    command = (path / "cmdline").read_bytes()
                    if parent == os.getpid() and b"--multiprocessing-fork" in command:
                        killed.append(int(path.name))
                        os.kill(killed[0], signal.SIGKILL)
                        return
            time.sleep(0.02)

    monkeypatch.setenv("BLOCKLENS_DASK", "local:2")
    killer = threading.Thread(target=kill_the_first)
    killer.start()
    with open_crew(setting(notes)) as two:
        assert list(ordered(two, errands.square, NUMBERS)) == SQUARES
    killer.join()
    assert killed
